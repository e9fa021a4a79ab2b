"""How long a run takes on this machine, from the time that forward and backward pass take on a few images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastmim.training.loop import make_forward
from fastmim.training.plan import Plan

_ENOUGH_SECONDS = 0.5
_UNITS = ((86_400, "days", 1), (3_600, "h", 1), (60, "min", 0), (1, "s", 0))


def seconds_per_image(
    model: nn.Module,
    forward: Callable[[dict[str, Any]], Tensor],
    make_batch: Callable[[int], dict[str, Any]],
    *,
    most: int,
    device: torch.device,
) -> tuple[float, int]:
    """Measure forward and backward pass on more and more images, until they take half a second.

    Args:
        model: On the device; its gradients are cleared, and batch norms count the images.
        forward: Batch -> loss, as `loop.make_forward` makes it.
        make_batch: Number of images -> a batch of them on the device.
        most: The most images to try at once.
        device: Where the model is.

    Returns:
        Seconds per image, and the number of images that were measured at once.
    """
    num_images = min(2, most)
    _seconds(model, forward, make_batch(num_images), device)  # the first pass also prepares kernels and memory
    while True:
        seconds = _seconds(model, forward, make_batch(num_images), device)
        if seconds >= _ENOUGH_SECONDS or num_images == most:
            return seconds / num_images, num_images
        num_images = min(2 * num_images, most)


def _seconds(
    model: nn.Module, forward: Callable[[dict[str, Any]], Tensor], batch: dict[str, Any], device: torch.device
) -> float:
    start = time.perf_counter()
    forward(batch).backward()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds


class Trainable(Protocol):
    """What is asked of a `training.run.Task`."""

    model: nn.Module
    plan: Plan

    def prepare(self, batch: dict[str, Any]) -> Mapping[str, Any]: ...
    def blank_batch(self, num_images: int) -> dict[str, Any]: ...


def describe(task: Trainable, step: int) -> str:
    """A line that says how long a run takes from a step on, by a trial at its first image size.

    At the other sizes, the time is taken to grow with the number of pixels.
    """
    plan, first = task.plan, task.plan.stages[0]
    share = plan.world.share(plan.batch_size)
    seconds, num_images = seconds_per_image(
        task.model,
        make_forward(task.model, task.prepare, plan.device, bf16=plan.bf16, compile=False),
        task.blank_batch,
        most=share // first.accumulation,
        device=plan.device,
    )
    total = sum(
        max(0, stage.stop - max(stage.start, step)) * share * seconds * (stage.size / first.size) ** 2
        for stage in plan.stages
    )
    eager = ", without compilation" if plan.compile else ""
    return (
        f"time      about {in_words(total)} on this machine, at {share * seconds:.2g} s a step, by a trial on "
        f"{num_images} images{eager}; data, optimiser, pictures and evaluations come on top"
    )


def in_words(seconds: float) -> str:
    """A duration in its largest sensible unit, such as "2.5 h"."""
    size, unit, digits = next(each for each in _UNITS if seconds >= 1.5 * each[0] or each[0] == 1)
    return f"{seconds / size:,.{digits}f} {unit}"
