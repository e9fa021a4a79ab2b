"""MAE, SimMIM and FastMIM on the same backbone, each with the settings of its paper."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fastmim.bench import flops, memory
from fastmim.bench.steps import Form, fastmim_step, synthetic_batch
from fastmim.bench.timing import Times, ratios, take_turns
from fastmim.errors import RequestError
from fastmim.method.mim import MIM
from fastmim.method.targets import HOG, Pixels

EPOCH = 1_281_167
"""Images in ImageNet-1K's training set, the unit in which papers count epochs."""

FASTMIM = "FastMIM 128"

_SIMMIM: dict[str, Any] = {
    "target": functools.partial(Pixels, normalize=False),
    "mask_ratio": 0.6,
    "block": 32,
    "decoder": "linear",
    "loss": "l1",
}
METHODS: dict[str, dict[str, Any]] = {
    FASTMIM: {"img_size": 128, "target": HOG, "decoder": (256, 1)},
    "FastMIM 128, tokens dropped": {"img_size": 128, "target": HOG, "decoder": (256, 1), "masking": "drop"},
    "MAE 224": {"img_size": 224, "target": Pixels, "decoder": (512, 8), "masking": "drop"},
    "SimMIM 192": _SIMMIM | {"img_size": 192},
    "SimMIM 224": _SIMMIM | {"img_size": 224},
}
"""Arguments of MIM; a decoder has width / 32 heads, 16 for MAE as in its paper."""


def build(method: str, backbone: str, args: Mapping[str, Any] | None = None) -> MIM:
    """Build a method's model on a backbone.

    Raises:
        RequestError: the method drops tokens, which the backbone cannot do.
    """
    settings = dict(METHODS[method])
    torch.manual_seed(0)
    return MIM(backbone, target=settings.pop("target")(), backbone_args=args, **settings)


def measure(
    backbone: str, form: Form, *, device: str, batch_size: int, rounds: int, args: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Times]:
    """Time a training step of each method in turns, leaving out those that the backbone does not support.

    Returns:
        The summary by method, and the times.
    """
    torch.compiler.reset()
    sides: dict[str, Callable[[], Any]] = {}
    operations = {}
    for method, settings in METHODS.items():
        try:
            model = build(method, backbone, args).to(device).train()
        except RequestError:
            if settings.get("masking") != "drop":
                raise
            continue
        operations[method] = flops.count_flops(model, settings["img_size"], device)
        batch = synthetic_batch(batch_size, settings["img_size"], device)
        sides[method] = fastmim_step(model, batch, form)
    times = take_turns(sides, rounds=rounds, device=device, warm_up=1 if device == "cpu" else 3)
    rates = times.rates(batch_size)
    summary: dict[str, dict[str, Any]] = {}
    for method, run in sides.items():
        seconds = statistics.median(times.seconds[method]) / batch_size
        summary[method] = rates[method] | {
            "gflop_forward": operations[method] / 1e9,
            "memory_mib": memory.peak_mib(run, device),
            "device_hours_per_epoch": seconds * EPOCH / 3600,
            "times_slower": ratios(times.seconds, baseline=method, side=FASTMIM),
        }
    return summary, times
