"""The cost of `fastmim pretrain`'s loop over a bare training loop with the same model, data and optimiser.

    OMP_NUM_THREADS=1 python benchmarks/loop_overhead.py
    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/loop_overhead.py

The bare loop only goes forward and backward and steps AdamW: no logs, no checks, no seeding, no norms. Both loops see
the same batch, drawn in advance, so that neither loads data. CPU time per step, the loops taking turns. With several
processes both train through DistributedDataParallel, and the time is the main process's.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastmim.bench import records
from fastmim.bench.timing import ratios, take_turns
from fastmim.data import augment
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.method.mim import MIM
from fastmim.randomness import image_keys
from fastmim.system.run_directory import RunDirectory
from fastmim.training import loop, optim
from fastmim.training.logs import Logs
from fastmim.training.plan import Plan
from fastmim.training.schedule import Stage
from fastmim.training.settings import TrainConfig
from fastmim.training.world import ALONE, World, joined

LEARNING_RATE = 1e-4

Prepare = Callable[[dict[str, Any]], dict[str, Any]]
Build = Callable[[torch.nn.Module], torch.optim.AdamW]


def main() -> None:
    options = parse(__doc__, steps=20, batch_size=32, img_size=128)
    with joined() as world:
        compare(
            "loop-overhead" if world.size == 1 else "loop-overhead-ddp",
            "fastmim's loop costs at most 5 % more than a bare loop per step",
            lambda: MIM(options.backbone, img_size=options.img_size),
            prepare=prepare,
            build=functools.partial(optim.build, weight_decay=0.05, betas=(0.9, 0.95)),
            batch=noise(options),
            options=options,
            world=world,
        )


def prepare(batch: dict[str, Any]) -> dict[str, Any]:
    return augment.prepare(batch, torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))


def parse(doc: str, *, steps: int, batch_size: int, img_size: int) -> argparse.Namespace:
    """The options of a comparison of loops; also fixes threads and seed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=img_size)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return parser.parse_args()


def noise(options: argparse.Namespace) -> dict[str, Any]:
    """A batch of noise."""
    shape = (options.batch_size, 3, options.img_size, options.img_size)
    keys = image_keys(0, 0, torch.arange(options.batch_size))
    return {"images": torch.randint(0, 256, shape, dtype=torch.uint8), "keys": keys}


def compare(
    name: str,
    claim: str,
    make: Callable[[], torch.nn.Module],
    *,
    prepare: Prepare,
    build: Build,
    batch: dict[str, Any],
    options: argparse.Namespace,
    world: World = ALONE,
) -> None:
    """Time both loops in turns, each round with a new model from `make`, and write the record."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "bare": lambda: bare(make(), prepare, build, batch, options.steps, world),
            "fastmim": lambda: ours(make(), prepare, build, batch, options, Path(folder), world),
        }
        seconds = take_turns(sides, rounds=options.rounds).cpu
    if not world.main:
        return
    per_step = {side: 1000 * statistics.median(values) / options.steps for side, values in seconds.items()}
    records.write(
        Path(__file__).parent / "records",
        name,
        show=True,
        claim=claim,
        config=vars(options) | {"processes": world.size},
        raw=seconds,
        summary={"ms_per_step": per_step, "fastmim_over_bare": ratios(seconds, baseline="fastmim", side="bare")},
    )


def bare(
    model: torch.nn.Module, prepare: Prepare, build: Build, batch: dict[str, Any], steps: int, world: World
) -> None:
    """Go forward and backward and step, nothing else."""
    optimizer = build(model)
    if world.size > 1:
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * group.get("lr_scale", 1.0)
    model.train()
    for _ in range(steps):
        model(**prepare(batch))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class EnoughError(Exception):
    """Ends a round before the loop writes its last checkpoint, which a real run writes once in hundreds of steps."""


@dataclass(frozen=True)
class Trained:
    """What `loop.fit` trains: a model on the same batch for some steps."""

    model: torch.nn.Module
    prepare: Prepare
    build_optimizer: Build
    batch: dict[str, Any]
    steps: int

    def batches(self, stage: Stage, first_step: int) -> Generator[dict[str, Any]]:
        yield from (self.batch for _ in range(self.steps))
        raise EnoughError

    def facts(self) -> dict[str, Any]:
        return {}

    def periodic(self, logs: Logs) -> list[loop.Periodic]:
        return []


def ours(
    model: torch.nn.Module,
    prepare: Prepare,
    build: Build,
    batch: dict[str, Any],
    options: argparse.Namespace,
    folder: Path,
    world: World,
) -> None:
    """Train with `loop.fit`: logs, seeding, gradient norms, the check for non-finite steps."""
    plan = Plan(
        num_images=100 * options.batch_size * world.size,
        batch_size=options.batch_size * world.size,
        steps_per_epoch=100,
        total_steps=options.steps + 1,
        warmup_steps=1,
        peak_lr=LEARNING_RATE,
        stages=[Stage(options.img_size, 0, options.steps + 1, 1)],
        device=torch.device("cpu"),
        bf16=False,
        compile=False,
        num_workers=0,
        world=world,
    )
    logs = Logs(RunDirectory(folder), total_steps=plan.total_steps, console=Console(quiet=True))
    config = TrainConfig(out=folder, batch_size=options.batch_size * world.size)
    with suppress(EnoughError):
        loop.fit(Trained(model, prepare, build, batch, options.steps), config, plan, logs=logs)
    logs.close()


if __name__ == "__main__":
    main()
