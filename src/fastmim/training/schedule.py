"""Learning rate, durations and resolution stages as pure functions of the step; does not import torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Decay = Literal["cosine", "linear"]

_UNITS = {"step": "steps", "steps": "steps", "epoch": "epochs", "epochs": "epochs", "ep": "epochs"}
_UNITS |= {"image": "images", "images": "images", "%": "%"}
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]*)?|\.[0-9]+)"


def to_steps(duration: str, *, total_steps: int, steps_per_epoch: int, batch_size: int) -> int:
    """Convert a duration to optimiser steps; the one place that does.

    Args:
        duration: `1000` or `1000 steps`, `20 epochs`, `1e6 images`, `5%` (of the run).

    Raises:
        ValueError: not a duration.
    """
    match = re.fullmatch(rf"\s*{_NUMBER}(e[0-9]{{1,2}})?\s*([a-z]+|%)?\s*", duration.lower())
    unit = _UNITS.get(match[3] or "steps") if match else None
    if match is None or unit is None:
        raise ValueError("expected a duration such as `20 epochs`, `1000 steps`, `1e6 images` or `5%`")
    amount = float(match[1] + (match[2] or ""))
    scale = {"steps": 1, "epochs": steps_per_epoch, "images": 1 / batch_size, "%": total_steps / 100}[unit]
    return round(amount * scale)


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    drop_step: int | None = None,
    decay: Decay = "cosine",
) -> float:
    """Return the learning rate of a step: linear warm-up to `peak`, then a half cosine to 0 at `total_steps`.

    Args:
        step: The step about to be made, counted from 0; the first warm-up step has a rate above 0 already.
        drop_step: Instead of the cosine, stay at `peak` up to this step and at a tenth of it from there on.
        decay: "linear" is a line from `peak` at step 0 to 0 at `total_steps`, which the warm-up multiplies.
    """
    if decay == "linear" and drop_step is None:
        return peak * (1 - step / total_steps) * min(1.0, (step + 1) / max(1, warmup_steps))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if drop_step is not None:
        return peak if step < drop_step else peak / 10
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True)
class Stage:
    """Steps `start` to `stop` (exclusive) at one image size."""

    size: int
    """Image side in pixels."""
    start: int
    stop: int
    accumulation: int
    """Micro-batches per optimiser step and device."""


def parse_stages(text: str) -> tuple[tuple[int, float], ...]:
    """Parse `128:0.5,160:0.3,192:0.2` to ((128, 0.5), (160, 0.3), (192, 0.2)).

    Raises:
        ValueError: the text has another form, or the shares do not sum to 1.
    """
    pairs = [re.fullmatch(rf"\s*([0-9]{{1,9}})\s*:\s*{_NUMBER}\s*", part) for part in text.split(",")]
    stages = tuple((int(pair[1]), float(pair[2])) for pair in pairs if pair)
    if len(stages) != len(pairs) or any(size < 1 or share <= 0 for size, share in stages):
        raise ValueError("expected SIZE:SHARE,SIZE:SHARE such as 128:0.5,160:0.3,192:0.2")
    total = sum(share for _, share in stages)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"expected shares that sum to 1; these sum to {total:g}")
    return stages


def plan_stages(
    sizes: Sequence[tuple[int, float]], *, total_steps: int, device_batch: int, micro_batch: int | None
) -> list[Stage]:
    """Plan the resolution stages in steps, with the accumulation that each needs (FastMIM-P, section 3.4 of the paper).

    The global batch never changes. Memory grows with the number of pixels, so a device that holds `micro_batch` images
    at the first size holds (first size / size)^2 times as many in a later stage.

    Args:
        sizes: (image size, share of the run) in order.
        device_batch: Images per step and device.
        micro_batch: The most images at once at the first size; None for no limit.
    """
    stages: list[Stage] = []
    done, start = 0.0, 0
    for size, share in sizes:
        done += share
        stop = total_steps if len(stages) == len(sizes) - 1 else round(done * total_steps)
        limit = device_batch if micro_batch is None else max(1, int(micro_batch * (sizes[0][0] / size) ** 2))
        accumulation = next(
            n for n in range(1, device_batch + 1) if device_batch % n == 0 and device_batch // n <= limit
        )
        stages.append(Stage(size, start, stop, accumulation))
        start = stop
    return [stage for stage in stages if stage.stop > stage.start]


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """Return the stage of a step; the last one from the end of the run on."""
    return next((stage for stage in stages if step < stage.stop), stages[-1])
