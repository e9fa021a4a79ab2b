"""MAE, SimMIM and FastMIM side by side: the same backbone, loop and device, each as its paper sets it."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fastmim.bench import peak
from fastmim.bench.records import Times, ratios, take_turns
from fastmim.bench.steps import Form, fastmim_step
from fastmim.errors import RequestError
from fastmim.method.mim import MIM
from fastmim.method.targets import HOG, Pixels

EPOCH = 1_281_167
"""Images of ImageNet-1K's training set, which papers count epochs in."""

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
"""Arguments of MIM; the decoder of MAE has 16 heads, as all of ours have width / 32."""


def build(method: str, backbone: str, args: Mapping[str, Any] | None = None) -> MIM:
    """The method's model on a backbone.

    Raises:
        RequestError: a backbone that cannot drop tokens where the method does.
    """
    settings = dict(METHODS[method])
    torch.manual_seed(0)
    return MIM(backbone, target=settings.pop("target")(), backbone_args=args, **settings)


def measure(
    backbone: str, form: Form, *, device: str, batch_size: int, rounds: int, args: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Times]:
    """Time a training step of each method in turns; those that the backbone cannot do are left out.

    Returns:
        The summary by method, and the times.
    """
    torch.compiler.reset()
    sides: dict[str, Callable[[], Any]] = {}
    flops = {}
    for method, settings in METHODS.items():
        try:
            model = build(method, backbone, args).to(device).train()
        except RequestError:
            if settings.get("masking") != "drop":
                raise
            continue
        flops[method] = peak.count_flops(model, settings["img_size"], device)
        batch = peak.synthetic(batch_size, settings["img_size"], device)
        sides[method] = fastmim_step(model, batch, form)
    times = take_turns(sides, rounds=rounds, device=device, warm_up=1 if device == "cpu" else 3)
    rates = times.rates(batch_size)
    summary: dict[str, dict[str, Any]] = {}
    for method, run in sides.items():
        seconds = statistics.median(times.seconds[method]) / batch_size
        summary[method] = rates[method] | {
            "gflop_forward": flops[method] / 1e9,
            "memory_mib": peak.peak_mib(run, device),
            "device_hours_per_epoch": seconds * EPOCH / 3600,
            "times_slower": ratios(times.seconds, baseline=method, side=FASTMIM),
        }
    return summary, times
