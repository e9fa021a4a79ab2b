"""What `fastmim finetune`'s loop costs over a bare fine-tuning loop on the same network, data and optimiser.

    OMP_NUM_THREADS=1 python benchmarks/finetune_overhead.py

The bare loop flips and normalises, mixes, goes forward and backward, and steps AdamW with one learning rate for
each block: no logs, no checks, no seeding, no norms. Both see the same batch, drawn in advance, so that data
loading is in neither. CPU time per step, alternating rounds.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import record
import torch
from rich.console import Console

from fastmim.backbone import Classifier
from fastmim.data.mixing import Mix
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.randomness import image_keys
from fastmim.training import loop, optim, schedule
from fastmim.training.logs import Logs
from fastmim.training.schedule import Stage
from fastmim.transfer.classify.finetuner import Finetuner, Preparation

NUM_CLASSES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=224)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    size, number = options.img_size, options.batch_size
    batch = {
        "images": torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8),
        "keys": image_keys(0, 0, torch.arange(number)),
        "labels": torch.randint(0, NUM_CLASSES, (number,)),
    }
    prepare = Preparation(
        mean=torch.tensor(IMAGENET_MEAN),
        std=torch.tensor(IMAGENET_STD),
        flip=True,
        reprob=0.25,
        mix=Mix(mixup=0.8, cutmix=1.0, smoothing=0.1, num_classes=NUM_CLASSES),
    )
    models = {
        name: Finetuner(Classifier(options.backbone, num_classes=NUM_CLASSES, img_size=size))
        for name in ("bare", "fastmim")
    }
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "bare": functools.partial(bare, models["bare"], prepare, batch, options.steps),
            "fastmim": functools.partial(ours, models["fastmim"], prepare, batch, options, Path(folder)),
        }
        for side in sides.values():
            side()  # warm up
        seconds = record.alternate(sides, rounds=options.rounds)
    per_step = {name: statistics.median(values) / options.steps for name, values in seconds.items()}
    record.write(
        "finetune-overhead",
        claim="The fine-tuning loop costs at most 5 % more than a bare loop per step.",
        config=vars(options),
        raw=seconds,
        summary={
            "ms_per_step": {name: value * 1000 for name, value in per_step.items()},
            "fastmim_over_bare": record.ratios(seconds, baseline="fastmim", side="bare"),
        },
    )


def build(model: torch.nn.Module) -> torch.optim.AdamW:
    assert isinstance(model, Finetuner)
    groups = model.classifier.parameter_groups(weight_decay=0.05, layer_decay=0.75)
    return optim.adamw(groups, betas=(0.9, 0.999))


def bare(model: Finetuner, prepare: Preparation, batch: dict[str, Any], steps: int) -> None:
    """Forward, backward, step."""
    optimizer = build(model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4 * group["lr_scale"]
    model.train()
    for _ in range(steps):
        model(**prepare(batch))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class _Enough(Exception):  # noqa: N818 - no error, the way out before the last step's checkpoint
    """All steps are made."""


def ours(model: Finetuner, prepare: Preparation, batch: dict[str, Any], options: argparse.Namespace, out: Path) -> None:
    """The same through `loop.fit`, which would write a checkpoint after its last step: the data end before it."""

    def batches(stage: Stage, first_step: int) -> Generator[loop.Batch]:
        for _ in range(options.steps):
            yield batch
        raise _Enough

    logs = Logs(out, total_steps=options.steps + 1, console=Console(quiet=True))
    with suppress(_Enough):
        loop.fit(
            model,
            stages=[Stage(options.img_size, 0, options.steps + 1, 1)],
            batches=batches,
            prepare=prepare,
            build_optimizer=build,
            learning_rate=functools.partial(
                schedule.learning_rate, peak=1e-4, warmup_steps=0, total_steps=options.steps
            ),
            logs=logs,
            run=loop.Run(
                out=out,
                seed=0,
                batch_size=options.batch_size,
                steps_per_epoch=100,
                device=torch.device("cpu"),
                log_every=10,
                save_every=10**9,
                about={},
            ),
        )
    logs.close()


if __name__ == "__main__":
    main()
