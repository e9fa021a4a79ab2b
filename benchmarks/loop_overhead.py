"""What `fastmim pretrain`'s loop costs over a bare training loop on the same model, data and optimiser.

    OMP_NUM_THREADS=1 python benchmarks/loop_overhead.py

The bare loop does forward, backward, AdamW and nothing else: no logs, no checks, no seeding, no norms. Both
see the same batches, drawn in advance, so data loading is in neither. CPU time per step, alternating rounds.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import record
import torch
from rich.console import Console

from fastmim.data import augment
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.method.mim import MIM
from fastmim.randomness import image_keys
from fastmim.training import loop, optim, schedule
from fastmim.training.logs import Logs
from fastmim.training.schedule import Stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=128)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = {
        "images": torch.randint(0, 256, (options.batch_size, 3, options.img_size, options.img_size), dtype=torch.uint8),
        "keys": image_keys(0, 0, torch.arange(options.batch_size)),
    }
    models = {name: MIM(options.backbone, img_size=options.img_size) for name in ("bare", "fastmim")}
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "bare": functools.partial(bare, models["bare"], batch, options.steps),
            "fastmim": functools.partial(ours, models["fastmim"], batch, options.steps, Path(folder)),
        }
        for side in sides.values():
            side()  # warm up
        seconds = record.alternate(sides, rounds=options.rounds)
    per_step = {name: statistics.median(values) / options.steps for name, values in seconds.items()}
    ratio = record.ratios(seconds, baseline="fastmim", side="bare")
    record.write(
        "loop-overhead",
        claim="fastmim's loop costs at most 5 % more than a bare loop per step",
        config=vars(options),
        raw=seconds,
        summary={"ms_per_step": {k: v * 1000 for k, v in per_step.items()}, "fastmim_over_bare": ratio},
    )


def prepared(batch: dict[str, Any]) -> dict[str, Any]:
    return augment.prepare(batch, torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))


def build(model: torch.nn.Module) -> torch.optim.AdamW:
    return optim.build(model, weight_decay=0.05, betas=(0.9, 0.95))


def bare(model: MIM, batch: dict[str, Any], steps: int) -> None:
    """Forward, backward, step."""
    optimizer = build(model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    for _ in range(steps):
        model(**prepared(batch))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class EnoughError(Exception):
    """Ends a round before the loop writes its last checkpoint, which a real run writes once in hundreds of steps."""


def ours(model: MIM, batch: dict[str, Any], steps: int, folder: Path) -> None:
    """The loop as a run has it: logs, seeding, gradient norms, the check for non-finite steps."""

    def batches(stage: Stage, first_step: int) -> Iterator[dict[str, Any]]:
        yield from (batch for _ in range(steps))
        raise EnoughError

    logs = Logs(folder, total_steps=steps + 1, console=Console(quiet=True))
    run = loop.Run(
        out=folder, seed=0, batch_size=len(batch["keys"]), steps_per_epoch=100, device=torch.device("cpu"), about={}
    )
    with suppress(EnoughError):
        loop.fit(
            model,
            stages=[Stage(model.backbone.img_size, 0, steps + 1, 1)],
            batches=batches,
            prepare=prepared,
            build_optimizer=build,
            learning_rate=functools.partial(schedule.learning_rate, peak=1e-4, warmup_steps=1, total_steps=10**6),
            logs=logs,
            run=run,
        )
    logs.close()


if __name__ == "__main__":
    main()
