"""Whole runs of `fastmim.pretrain` from the disk, against the same loop on a batch in memory."""

from __future__ import annotations

import contextlib
import functools
import io
import statistics
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastmim import pretraining
from fastmim.bench.steps import synthetic_batch
from fastmim.bench.timing import spread
from fastmim.data.sources import Source
from fastmim.method import build
from fastmim.method.settings import PretrainConfig
from fastmim.training import loop, optim, schedule
from fastmim.training.logs import Logs
from fastmim.training.run_directory import read_metrics
from fastmim.training.schedule import Stage

MEMORY = "batches in memory"
SMALL: dict[str, Any] = {"patch_size": 32, "embed_dim": 96, "depth": 2, "num_heads": 3}
"""Arguments of a ViT that is small enough for reading to limit a CPU core."""


def measure(
    tiers: dict[str, Source],
    into: Path,
    *,
    device: str,
    backbone: str,
    backbone_args: dict[str, Any] | None,
    batch_size: int,
    steps: int,
    rounds: int,
    bf16: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train for some steps from every tier in turns; the first half of each run is a warm-up that does not count.

    Args:
        tiers: From `corpus.make_tiers`.
        into: An empty directory for the runs.
        device: Where to train.
        backbone: A timm model.
        backbone_args: Its arguments.
        batch_size: Images in a step.
        steps: Steps of a run, an even number.
        rounds: Runs of each tier.
        bf16: Train in bfloat16.

    Returns:
        The summary by tier; the images per second and the share of time waiting for data of each round.
    """
    settings: dict[str, Any] = {
        "backbone": backbone,
        "backbone_args": backbone_args or {},
        "batch_size": batch_size,
        "steps": steps,
        "log_every": steps // 2,
        "precision": "bf16" if bf16 else "float32",
        "device": device,
        "trackers": "none",
        "picture_every": "never",
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*tiers, MEMORY)}
    for number in range(rounds):
        for name, source in tiers.items():
            torch.compiler.reset()  # torch.compile gives up after a number of recompilations
            out = into / f"{name.replace(' ', '-')}-{number}"
            with contextlib.redirect_stdout(io.StringIO()):
                pretraining.pretrain(**settings, data=source.origin, out=out)
            found[name].append(read_metrics(out)[-1])
        origin = next(iter(tiers.values())).origin
        config = PretrainConfig(**settings, data=origin, out=into / f"memory-{number}")
        found[MEMORY].append(_from_memory(config, next(iter(tiers.values()))))
    raw = {
        key: {name: [line[key] for line in lines] for name, lines in found.items()}
        for key in ("images_per_s", "data_wait_share")
    }
    return {name: _summarise(raw, name) for name in found}, raw


def _summarise(raw: dict[str, dict[str, list[float]]], name: str) -> dict[str, Any]:
    share = [a / b for a, b in zip(raw["images_per_s"][name], raw["images_per_s"][MEMORY], strict=True)]
    return {
        "images_per_s": statistics.median(raw["images_per_s"][name]),
        "data_wait_share": statistics.median(raw["data_wait_share"][name]),
        "of_memory": spread(share),
    }


def _from_memory(config: PretrainConfig, source: Source) -> dict[str, float]:
    """The same run on one batch that stays on the device."""
    torch.compiler.reset()
    plan = pretraining.make_plan(config, source)
    model = build.build_model(config).to(plan.device)
    batch = synthetic_batch(config.batch_size, config.img_size, str(plan.device))

    def batches(stage: Stage, first_step: int) -> Generator[loop.Batch]:
        while True:
            yield batch

    config.out.mkdir()
    logs = Logs(config.out, total_steps=plan.total_steps, console=Console(quiet=True))
    loop.fit(
        model,
        stages=plan.stages,
        batches=batches,
        prepare=pretraining.preparation(plan.device),
        build_optimizer=functools.partial(optim.build, weight_decay=config.weight_decay, betas=config.betas),
        learning_rate=functools.partial(
            schedule.learning_rate, peak=plan.peak_lr, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps
        ),
        logs=logs,
        run=loop.Run.of(config, plan, about={}, faster_data=""),
    )
    logs.close()
    return read_metrics(config.out)[-1]
