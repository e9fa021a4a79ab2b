"""What the device can do at best, and what a model asks of it: matrix products, operations, memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fastmim.bench.records import take_turns
from fastmim.method.mim import MIM

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

STEP = 3
"""Operations of a step over those of its forward pass: each product's backward pass is two of its size. (Torch's
counter, asked for the backward pass of a grouped convolution, leaves the groups out.)"""

_WORTH_IT = 1.2
"""How much faster bfloat16 products must be for the device to count as one that has them."""


def matmul_tflops(device: str, precision: str, *, rounds: int = 7) -> float:
    """The most that a large matrix product reaches here, in 10^12 operations a second (a multiply-add is two).

    On a CPU by its own time, with as many threads as torch has now.
    """
    side = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    times = take_turns({"product": lambda: a @ b}, rounds=rounds, device=device, warm_up=2)
    return 2 * side**3 / min(times.seconds["product"]) / 1e12


def has_bf16(peaks: dict[str, float]) -> bool:
    """Whether bfloat16 is worth having on a device with these peaks."""
    return peaks["bf16"] > _WORTH_IT * peaks["float32"]


def count_flops(model: MIM, img_size: int, device: str) -> float:
    """Operations of an image's forward pass in matrix products and convolutions (a multiply-add is two)."""
    images = torch.zeros(1, 3, img_size, img_size, device=device)
    keys = torch.zeros(1, dtype=torch.int64, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images, keys)
    return float(counter.get_total_flops())


def peak_mib(run: Callable[[], Any], device: str) -> float | None:
    """The most memory that one run holds at once beyond what is held before it; None where torch does not tell."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if device != "cpu":
        return None
    with _Tally() as tally:
        run()
    return tally.most / 2**20


class _Tally(TorchDispatchMode):
    """Adds up the memory of the tensors that operations make while they live (the profiler would write to the console).

    What a kernel needs within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._held = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._seen.add(storage)  # was there before
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._seen:
                self._seen.add(storage)
                self._held += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.most = max(self.most, self._held)
        return result

    def _release(self, num_bytes: int) -> None:
        self._held -= num_bytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def synthetic(num_images: int, img_size: int, device: str) -> dict[str, Tensor]:
    """A batch as the loader gives it, already on the device: noise, with a key for each image."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, 3, img_size, img_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return {"images": images.to(device), "keys": torch.arange(num_images, device=device)}
