"""A small model of its own that tests of the loop train, and how a run of it is killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from fastmim.system.run_directory import RunDirectory
from fastmim.training import checkpoint, loop, optim
from fastmim.training.logs import Logs
from fastmim.training.plan import Plan
from fastmim.training.schedule import Stage
from fastmim.training.settings import TrainConfig

BATCH = 8


class Toy(nn.Module):
    """A network with dropout (so that randomness matters) and a position table that follows the size."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, size)[None])
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.5), nn.GELU(), nn.Linear(16, 1))

    def set_input_size(self, img_size: int) -> None:
        resized = nn.functional.interpolate(self.table[None], size=img_size, mode="linear")
        self.table = nn.Parameter(resized[0].detach())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = images + self.table
        return {"loss": (self.net(x[..., None])[..., 0] - x.sin()).square().mean()}


def batches(
    stage: Stage, first_step: int, *, spoil: Callable[[int], bool] = lambda step: False
) -> Iterator[dict[str, Any]]:
    for step in range(first_step, stage.stop):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(BATCH, stage.size, generator=generator)
        if spoil(step):
            images[0, 0] = float("nan")
        for part in images.chunk(stage.accumulation):
            yield {"images": part}


@dataclass
class Task:
    """A Toy with its batches."""

    model: nn.Module
    batches: Callable[[Stage, int], Iterator[dict[str, Any]]]
    events: Sequence[loop.Periodic] = ()

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def build_optimizer(self, model: nn.Module) -> AdamW:
        return optim.build(model, weight_decay=0.05, betas=(0.9, 0.95))

    def facts(self) -> dict[str, Any]:
        return {"num_images": 100, "stages": []}

    def periodic(self, logs: Logs) -> Sequence[loop.Periodic]:
        return self.events


class SteadyPlan(Plan):
    def learning_rate(self, step: int) -> float:
        return 1e-2


def fit(
    out: Path,
    *,
    stages: list[Stage] | None = None,
    run: dict[str, Any] | None = None,
    stream: Callable[[Stage, int], Iterator[dict[str, Any]]] = batches,
    model: nn.Module | None = None,
    periodic: Sequence[loop.Periodic] = (),
    compile: bool = False,
    cuda_graphs: bool = False,
    advice: str = "",
) -> nn.Module:
    """Run `loop.fit` on a Toy in `out`, resuming what is there."""
    out.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = model or Toy()
    found = checkpoint.newest(out / "checkpoints")
    stages = stages or [Stage(4, 0, 20, 1)]
    logs = Logs(RunDirectory(out), total_steps=stages[-1].stop, step=found.step if found else 0)
    options: dict[str, Any] = {"save_every": 5, "log_every": 2} | (run or {})
    plan = SteadyPlan(
        num_images=100,
        batch_size=BATCH,
        steps_per_epoch=10,
        total_steps=stages[-1].stop,
        warmup_steps=0,
        peak_lr=1e-2,
        stages=stages,
        device=torch.device("cpu"),
        bf16=False,
        compile=compile,
        cuda_graphs=cuda_graphs,
        num_workers=0,
    )
    config = TrainConfig(out=out, seed=1, batch_size=BATCH, **options)
    try:
        loop.fit(Task(model, stream, periodic), config, plan, logs=logs, resume_from=found, faster_data=advice)
    finally:
        logs.close()
    return model


class KilledError(Exception):
    """Stands for the process being gone."""


def killed_at(
    step: int, source: Callable[[Stage, int], Iterator[dict[str, Any]]] = batches
) -> Callable[[Stage, int], Iterator[dict[str, Any]]]:
    def stream(stage: Stage, first_step: int) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(source(stage, first_step)):
            if first_step + number // stage.accumulation == step:
                raise KilledError
            yield batch

    return stream


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


STAGED = [Stage(4, 0, 10, 1), Stage(6, 10, 16, 2), Stage(9, 16, 20, 4)]
