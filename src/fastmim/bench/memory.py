"""Peak memory of the tensors that a function makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_mib(run: Callable[[], Any], device: str) -> float | None:
    """The peak of the memory that `run` allocates, in MiB; None on devices whose allocator torch cannot query.

    On a CPU `run` must be eager: compiled code cannot be observed, and would be measured in its eager form.
    """
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
    return tally.peak / 2**20


class _Tally(TorchDispatchMode):
    """Adds up the storages that operations return while they live, without the scratch memory inside a kernel.

    The profiler would give the same numbers, but writes to the console.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._held = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._seen.add(storage)  # existed before
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._seen:
                self._seen.add(storage)
                self._held += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.peak = max(self.peak, self._held)
        return result

    def _release(self, num_bytes: int) -> None:
        self._held -= num_bytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
