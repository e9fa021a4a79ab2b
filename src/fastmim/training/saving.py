"""Saving behind the training: a step waits until its state is copied to host memory, and a thread writes the copy."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from fastmim.errors import RunError
from fastmim.system import devices
from fastmim.training import checkpoint
from fastmim.training.sharding import whole
from fastmim.training.world import World


class Saver:
    """Saves checkpoints, one at a time: a save begins by waiting for the one before.

    The copy takes as much host memory as the checkpoint, 12 bytes for each float32 parameter with AdamW's moments, in
    the main process only, and is kept for the next save. From CUDA it is page-locked, in pieces that are rounded up to
    powers of two. Where there is no room for it, the training waits for each checkpoint to be written.

    The end of the block waits for the save in flight, whatever ended the block: until then the run directory is in use.

    Args:
        root: The run's `checkpoints` directory.
        keep_every: See `checkpoint.write`.
        world: The processes of the run.
        say: Tells the user that there is no room.
    """

    def __init__(self, root: Path, *, keep_every: int | None, world: World, say: Callable[[str], None]) -> None:
        self._root, self._keep_every, self._world, self._say = root, keep_every, world, say
        self._copy: dict[str, dict[str, Tensor]] = {}
        self._has_room = True
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread:
            self._thread.join()

    def save(self, step: int, model: nn.Module, optimizer: AdamW, *, about: dict[str, Any]) -> None:
        """Save the state after `step` steps; every process of the run calls this, and the main one saves.

        Raises:
            RunError: the save before has failed, or a divided model does not fit into the main process's host memory.
        """
        with self._world.together():
            self.wait()
            state = checkpoint.collect(step, model, optimizer, about=about)
            if self._world.main:
                self._has_room = self._has_room and self._make_room(state)
        if not self._world.main:
            for tensors in state.tensors.values():
                for tensor in tensors.values():
                    whole(tensor)
        elif self._has_room:
            copy = self._copied(state)
            self._thread = threading.Thread(target=self._write, args=[copy], name="save", daemon=True)
            self._thread.start()
        else:
            self._write(state)

    def check(self) -> None:
        """Raise the error of a save that has failed, without waiting for one in flight."""
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    def wait(self) -> None:
        """Wait for the save in flight, if there is one.

        Raises:
            RunError: it has failed.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        self.check()

    def _write(self, state: checkpoint.State) -> None:
        try:
            checkpoint.write(self._root, state, keep_every=self._keep_every)
        except BaseException as error:  # for `check`, which raises it in the training's own thread
            self._failure = error

    def _make_room(self, state: checkpoint.State) -> bool:
        """Allocate host memory for a copy of the state, unless an earlier save has; False if there is no room."""
        free = None if self._copy else devices.free_memory()
        if free is None or free >= state.num_bytes:
            try:
                self._copy = {
                    file: {name: self._buffer(file, name, tensor) for name, tensor in tensors.items()}
                    for file, tensors in state.tensors.items()
                }
                return True
            except (MemoryError, RuntimeError):  # torch raises either
                self._copy = {}
        if any(isinstance(tensor, DTensor) for tensors in state.tensors.values() for tensor in tensors.values()):
            raise RunError(
                f"no room in host memory for the state of {state.num_bytes / 2**30:.2g} GiB, which process 0 gathers "
                f"to save it; expected as much free memory on its machine: add memory, or take fewer processes there"
            )
        self._say(
            f"note      no room in host memory for a copy of the state ({state.num_bytes / 2**30:.2g} GiB): training "
            f"waits while a checkpoint is written"
        )
        return False

    def _buffer(self, file: str, name: str, tensor: Tensor) -> Tensor:
        before = self._copy.get(file, {}).get(name)
        if before is not None and (before.shape, before.dtype) == (tensor.shape, tensor.dtype):
            return before
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")

    def _copied(self, state: checkpoint.State) -> checkpoint.State:
        on_cuda: set[torch.device] = set()
        for file, tensors in state.tensors.items():
            for name, tensor in tensors.items():
                asynchronous = tensor.device.type == "cuda"
                self._copy[file][name].copy_(whole(tensor).detach(), non_blocking=asynchronous)
                if asynchronous:
                    on_cuda.add(tensor.device)
        for device in on_cuda:
            torch.cuda.current_stream(device).synchronize()
        return dataclasses.replace(state, tensors=self._copy)
