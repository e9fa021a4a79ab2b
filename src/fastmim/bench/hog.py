"""The HOG target alone, against its one-hot form and against a copy of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastmim.bench import peak
from fastmim.bench.records import Times, ratios, take_turns
from fastmim.bench.references import PlainHOG
from fastmim.method.targets import HOG

REFERENCE = "one-hot form"


def measure(
    *, device: str, batch_size: int, rounds: int, img_size: int = 128, compile: bool = False
) -> tuple[dict[str, Any], Times]:
    """Time the forms in turns.

    Returns:
        The summary by form, and the times.
    """
    images = torch.randn(batch_size, 3, img_size, img_size, generator=torch.Generator().manual_seed(0)).to(device)
    hog, reference = HOG(), PlainHOG().to(device)
    sides: dict[str, Callable[[], Any]] = {REFERENCE: lambda: reference(images), "fastmim": lambda: hog(images)}
    if compile:
        compiled = torch.compile(hog)
        sides["fastmim compiled"] = lambda: compiled(images)
    sides["copy of the images"] = images.clone
    times = take_turns(sides, rounds=rounds, device=device, warm_up=2)
    rates = times.rates(batch_size)
    return {
        name: rates[name]
        | {
            "memory_mib": peak.peak_mib(run, device),
            "times_faster": ratios(times.seconds, baseline=REFERENCE, side=name),
        }
        for name, run in sides.items()
    }, times
