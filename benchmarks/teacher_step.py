"""The training step with a teacher against the one with HOG: `python benchmarks/teacher_step.py`.

A ViT-S at 128 pixels, forward and backward, with one and four masks an image in batches of as many masked images.
Teachers see their own 224 pixels; their weights are random, which costs what trained ones cost.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastmim.backbone import Backbone
from fastmim.bench import records
from fastmim.bench.timing import Times, spread, take_turns
from fastmim.method.joint import Joint
from fastmim.method.mim import MIM
from fastmim.method.targets import HOG, RandomProjection, Target
from fastmim.method.teacher import Teacher

STUDENT, SIZE, FOLDER = "vit_small_patch16_224", 128, Path(__file__).parent / "records"
MASKS = (1, 4)


def teacher(size: str) -> Teacher:
    """A ViT of this size with random weights."""
    return Teacher(Backbone(f"vit_{size}_patch16_224", img_size=224))


TARGETS: dict[str, Callable[[], Target]] = {
    "HOG": HOG,
    "random projection": RandomProjection,
    "ViT-S teacher": lambda: teacher("small"),
    "HOG + ViT-S teacher": lambda: Joint(HOG(), teacher("small")),
    "ViT-B teacher": lambda: teacher("base"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8, help="masked images of a step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = {f"{name}, {masks} mask{'s' * (masks > 1)}": (name, masks) for name in TARGETS for masks in MASKS}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as own_processes:
        memory = {
            case: own_processes.submit(megabytes, name, masks, options.batch_size).result()
            for case, (name, masks) in cases.items()
        }
    steps = {case: Step(TARGETS[name](), masks, options.batch_size) for case, (name, masks) in cases.items()}
    times = take_turns(steps, rounds=options.rounds)
    records.write(
        FOLDER,
        "teacher-step",
        show=True,
        claim="what a teacher adds to a step, and how far several masks of an image share the cost",
        config={"student": STUDENT, "img_size": SIZE, "teacher_size": 224, **vars(options)},
        raw=times.raw(),
        summary={
            name: summary(name, step, times, options.batch_size) | {"peak_mb": memory[name]}
            for name, step in steps.items()
        },
    )


def megabytes(name: str, masks: int, batch_size: int) -> float:
    """What student, teacher and a step take at most, in a new process, above what the imports took."""
    torch.set_num_threads(1)
    before = peak_bytes()
    step = Step(TARGETS[name](), masks, batch_size)
    step()
    return (peak_bytes() - before) / 1e6


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Step:
    """Forward and backward pass of a batch."""

    def __init__(self, target: Target, masks: int, batch_size: int) -> None:
        torch.manual_seed(0)
        self.model = MIM(STUDENT, img_size=SIZE, target=target, masks_per_image=masks).train()
        self.images = torch.randn(batch_size // masks, 3, SIZE, SIZE)

    def __call__(self) -> None:
        self.model(self.images)["loss"].backward()
        self.model.zero_grad(set_to_none=True)

    def multiply_adds(self) -> float:
        """Of a step, in matrix products and convolutions."""
        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops() / 2


def summary(name: str, step: Step, times: Times, batch_size: int) -> dict[str, Any]:
    """Masked images per second of CPU time, multiply-adds of each, and the step's CPU time over that with HOG."""
    ratios = [ours / theirs for ours, theirs in zip(times.cpu[name], times.cpu["HOG, 1 mask"], strict=True)]
    return {
        "masked_images_per_cpu_s": batch_size / statistics.median(times.cpu[name]),
        "giga_multiply_adds_each": step.multiply_adds() / batch_size / 1e9,
        "times_the_cpu_time_of_hog": spread(ratios),
    }


if __name__ == "__main__":
    main()
