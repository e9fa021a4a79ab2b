"""The HOG target alone, against its one-hot form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmim.bench import memory
from fastmim.bench.references import PlainHOG
from fastmim.bench.timing import Sides, Times, ratios, take_turns
from fastmim.method.targets import HOG

REFERENCE, OURS, COMPILED = "one-hot form", "fastmim", "fastmim compiled"


def forms(images: Tensor, *, compile: bool) -> Sides:
    """The forms of the target, applied to `images` (B, 3, S, S)."""
    hog, reference = HOG(), PlainHOG().to(images.device)
    sides: dict[str, Callable[[], Tensor]] = {REFERENCE: lambda: reference(images), OURS: lambda: hog(images)}
    if compile:
        compiled = torch.compile(hog)
        sides[COMPILED] = lambda: compiled(images)
    return sides


def measure(
    *, device: str, batch_size: int, rounds: int, img_size: int = 128, compile: bool = False
) -> tuple[dict[str, Any], Times]:
    """Time the forms in turns.

    Returns:
        The summary by form, and the times.
    """
    images = torch.randn(batch_size, 3, img_size, img_size, generator=torch.Generator().manual_seed(0)).to(device)
    sides = forms(images, compile=compile)
    times = take_turns(sides, rounds=rounds, device=device, warm_up=2)
    rates = times.rates(batch_size)
    return {
        name: rates[name]
        | {
            "memory_mib": None if name == COMPILED and device == "cpu" else memory.peak_mib(run, device),
            "times_faster": ratios(times.seconds, baseline=REFERENCE, side=name),
        }
        for name, run in sides.items()
    }, times
