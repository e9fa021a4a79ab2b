"""Arithmetic: the throughput of a device's matrix products, and the operations of a model's forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastmim.bench.timing import take_turns
from fastmim.method.mim import MIM

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

STEP = 3
"""Operations of a training step over those of its forward pass: the backward pass of a product is two products of its
size. (Torch's counter ignores the groups in the backward pass of a grouped convolution.)"""


def matmul_tflops(device: str, precision: str, *, rounds: int = 7, side: int | None = None) -> float:
    """The peak throughput of a large matrix product, in 10^12 operations a second (a multiply-add is two).

    On a CPU it is measured in CPU time, with torch's current number of threads.
    """
    side = side or (1024 if device == "cpu" else 8192)
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    times = take_turns({"product": lambda: a @ b}, rounds=rounds, device=device, warm_up=2)
    return 2 * side**3 / min(times.seconds["product"]) / 1e12


def count_flops(model: MIM, img_size: int, device: str) -> float:
    """Operations of one image's forward pass in matrix products and convolutions (a multiply-add is two)."""
    images = torch.zeros(1, 3, img_size, img_size, device=device)
    keys = torch.zeros(1, dtype=torch.int64, device=device)
    return count(lambda: model(images, keys))


def count(run: Callable[[], Any]) -> float:
    """Operations of a function in matrix products and convolutions."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
