"""The processes that train one model together; a process on its own is a world of one."""

from __future__ import annotations

import os
import platform
import secrets
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from fastmim.errors import ElsewhereError, RequestError, RunError, first_line
from fastmim.system import devices
from fastmim.system.processes import Place, find_place
from fastmim.system.signals import Stopped
from fastmim.training.batch_norm import share_batch_norms

# torch has it under the second name before 2.15.
_set_timeout: Callable[..., None] = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout

T = TypeVar("T")

_FIND_SECONDS = 60
_STEP_PATIENCE = timedelta(minutes=30)
"""How long processes wait for the gradients of another."""
_PATIENCE = timedelta(hours=6)
"""How long processes wait for one that validates or draws; one that dies is noticed at once."""
_LAGS, _LOADS = 2.0, 0.1
"""How many times longer than the others a straggler takes, and the least share of its time for data."""
_WATCH_SECONDS, _APPEAR_SECONDS = 1.0, 5.0
_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "TCPStore")


_ALONE = Place()


def _nothing() -> None:
    pass


class World:
    """What the processes of a run say to each other; all of it is free for a process on its own.

    Every process must make the same calls in the same order.
    """

    def __init__(self, place: Place = _ALONE, store: Store | None = None) -> None:
        self.rank, self.size = place.rank, place.size
        self.local_rank, self.local_size = place.local_rank, place.local_size
        self._store = store
        # Words travel on the CPU, also where gradients travel by NCCL: a device would have to be waited for.
        self.gather: Callable[[], None] = _nothing
        """Brings the weights of a divided model back into the one that the main process draws, validates and writes."""
        self._suspect: tuple[int, str] | None = None
        self._named: set[tuple[int, str]] = set()
        self._words: Any = self._meet() if self.size > 1 else None

    def _meet(self) -> Any:
        """The group of all processes for words, once all have said one.

        While groups form, nobody notices that a process has died, so that the time for it is short.
        """
        words: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=_FIND_SECONDS))
        dist.barrier(words)
        _set_timeout(_STEP_PATIENCE, dist.group.WORLD)
        _set_timeout(_PATIENCE, words)
        return words

    @property
    def main(self) -> bool:
        """Whether this is the process that prints, writes and holds the run directory's lock."""
        return self.rank == 0

    def exchange(self, value: T) -> list[T]:
        """Everyone's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._words)
        return values

    def collect(self, value: T) -> list[T]:
        """Everyone's value, by rank, in the main process; nothing in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.main else []
        dist.gather_object(value, values if self.main else None, group=self._words)
        return values

    def agree(self, wish: bool) -> bool:
        """Whether any process wishes it."""
        if self.size == 1:
            return wish
        if wish and self._store:
            self._store.set("stop", "1")  # for those that wait for data, and could wait for ever
        wishes = torch.tensor(int(wish))
        dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._words)
        return bool(wishes)

    def asked_to_stop(self) -> bool:
        """Whether another process has wished to stop, without waiting for anyone."""
        return bool(self._store and self._store.check(["stop"]))

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that fails in every process if it fails in one.

        Raises:
            ElsewhereError: it failed in another process, which says why.
            Stopped: another process was asked to stop.
        """
        failure: BaseException | None = None
        try:
            yield
        except (Exception, Stopped) as error:
            failure = error
        if self.size > 1:
            kind = "" if failure is None else "stopped" if isinstance(failure, Stopped) else "failed"
            kinds = self.exchange(kind)
            if failure is None and "failed" in kinds:
                raise ElsewhereError(f"process {kinds.index('failed')} failed")
            if failure is None and "stopped" in kinds:
                raise Stopped(f"process {kinds.index('stopped')} was asked to stop: run the same command again")
        if failure is not None:
            raise failure

    def on_main(self, function: Callable[[int], dict[str, float]]) -> Callable[[int], dict[str, float]]:
        """The function of a step for the main process, while the others wait and return nothing; see `together`."""

        def run(step: int) -> dict[str, float]:
            self.gather()
            with self.together():
                return function(step) if self.main else {}

        return run

    def check_same(self, what: str, value: Any) -> None:
        """Compare a value of every process.

        Raises:
            RequestError: one differs from the main process's.
        """
        values = self.exchange(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise RequestError(
                    f"{what} is {other} in process {rank}; expected {values[0]}, as in process 0: start every process "
                    f"with the same command, files and packages"
                )

    def check_devices(self, wanted: int | str | None) -> None:
        """Refuse several devices in one process, which only the command line divides among them."""
        if self.size == 1 and wanted not in (None, 1, "all"):
            raise RequestError(
                f"devices is {wanted} in one process; expected the command line, which starts the others "
                f"(`fastmim ... --devices {wanted}`), or torchrun"
            )

    def check_sees(self, folder: Path) -> None:
        """Let every process look for a file that the main one makes in a folder for the moment.

        Raises:
            RequestError: one does not find it; its machine has another disk there.
        """
        if self.size == 1:
            return
        probe = folder / f".seen-{self.exchange(secrets.token_hex(8))[0]}"
        try:
            with self.together():
                if self.main:
                    probe.touch()
            with self.together():
                if not self.main and not _appears(probe):
                    raise RequestError(
                        f"out is {folder}, where process {self.rank} on {platform.node()} does not see what process 0 "
                        f"writes; expected a directory on a disk that all machines share: take another --out"
                    )
        finally:
            if self.main:
                probe.unlink(missing_ok=True)

    def compare(
        self, metrics: dict[str, float], loading_share: float, forward_seconds: float
    ) -> tuple[dict[str, float], str | None]:
        """Compare the processes at a log line.

        Args:
            metrics: Those of the line.
            loading_share: Share of the time that this process waits for its own data.
            forward_seconds: Seconds of its forward pass, which waits for nobody.

        Returns:
            The metrics, with the longest wait for data and the most memory of all processes; and a line that names the
            process that all wait for, once, if it is the same at two log lines in a row.
        """
        found = self.exchange((metrics, platform.node(), loading_share, forward_seconds))
        all_metrics, nodes, loading, forward = zip(*found, strict=True)
        most = {name: max(each[name] for each in all_metrics) for name in ("data_wait_share", "memory_gb")}
        return metrics | most, self._straggler(nodes, loading, forward) if self.size > 1 else None

    def _straggler(self, nodes: Sequence[str], loading: Sequence[float], forward: Sequence[float]) -> str | None:
        before, self._suspect = self._suspect, None
        for values, least, text in (
            (loading, _LOADS, "waits for its data {:.0%} of the time, the others {:.0%}"),
            (forward, 0.0, "takes {:.2g} s for a forward pass, the others {:.2g} s"),
        ):
            rank = values.index(max(values))
            others = statistics.median(value for other, value in enumerate(values) if other != rank)
            if values[rank] > max(least, _LAGS * others):
                self._suspect = (rank, text)
                if before == self._suspect and before not in self._named:
                    self._named.add(before)
                    return f"process {rank} on {nodes[rank]} {text.format(values[rank], others)}: all wait for it"
                return None
        return None

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes, and batch norms over the whole batch."""
        if self.size == 1 or isinstance(model, FSDPModule):
            return model
        device = next(model.parameters()).device
        share_batch_norms(model, device)
        # A kernel of one channel has the same memory in both layouts.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers`")  # its successor is not in torch 2.11
            wrapped = DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,  # they are equal already
                gradient_as_bucket_view=True,
            )
        _settle_buckets(wrapped)
        return wrapped

    def accumulating(self, model: nn.Module) -> AbstractContextManager[None]:
        """For the micro-batches of a step but the last: gradients stay where they are."""
        if isinstance(model, FSDPModule):
            return _without_sync(model)
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def device(self, name: str) -> torch.device:
        """This process's device of a kind; see `devices.resolve_device`."""
        return devices.resolve_device(name, local_rank=self.local_rank if self.size > 1 else None)

    def share(self, global_batch: int, *, copies: int = 1) -> int:
        """Images of a step for one process, each of which is `copies` images of the batch.

        Raises:
            RequestError: the batch does not divide among the processes.
        """
        unit = self.size * copies
        if global_batch % unit:
            low = global_batch // unit * unit
            near = " or ".join(str(n) for n in (low, low + unit) if n)
            each = f" times {copies} copies of an image" if copies > 1 else ""
            raise RequestError(
                f"batch_size is {global_batch}; expected a multiple of the {self.size} processes{each}: take {near}"
            )
        return global_batch // unit


def _appears(path: Path) -> bool:
    """Whether there is such a file, or will be soon: file systems of several machines may take a moment."""
    until = time.monotonic() + _APPEAR_SECONDS
    while not path.exists() and time.monotonic() < until:
        time.sleep(_APPEAR_SECONDS / 20)
    return path.exists()


@contextmanager
def _without_sync(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    yield
    model.set_requires_gradient_sync(True)


def _settle_buckets(wrapped: DistributedDataParallel) -> None:
    """Let DDP put the gradients in the order in which it will keep them, by a pass that changes nothing.

    It does so after its first pass, and the rounding of a sum over three or more processes depends on the order: a run
    that was interrupted would have a step like no other.
    """
    model, trained = wrapped.module, [p for p in wrapped.module.parameters() if p.requires_grad]
    before = vars(model).get("forward")
    model.forward = lambda: torch.stack([0 * p.sum() for p in trained]).sum()
    wrapped().backward()
    del model.forward
    if before is not None:
        model.forward = before
    model.zero_grad(set_to_none=True)


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Join the other processes that torchrun, srun or `--devices` has started, if any.

    Raises:
        RequestError: the environment is incomplete, or the others do not answer within a minute.
        RunError: another process or its machine has gone.
    """
    place = find_place()
    if place.size == 1:
        yield ALONE
        return
    _end_with_parent()
    cuda = torch.cuda.is_available()
    if cuda and place.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(place.local_rank)
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=_FIND_SECONDS))))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"fastmim-{attempt}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=_FIND_SECONDS),
        )
        world = World(place, store)
    except (RuntimeError, ValueError) as error:
        host = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RequestError(
            f"the {place.size} processes did not find each other at {host} within {_FIND_SECONDS} s "
            f"({first_line(error)[:200]}): check MASTER_ADDR and MASTER_PORT, and that all of them were started"
        ) from None
    try:
        yield world
    except RuntimeError as error:
        if isinstance(error, RequestError | RunError) or not any(word in str(error) for word in _LOST):
            raise
        raise RunError(
            f"process {place.rank} has lost another process of the run, which has ended or cannot be reached "
            f"({first_line(error)[:200]}): run the same command to resume"
        ) from error
    dist.destroy_process_group()


def _end_with_parent() -> None:
    """End this process when the one of `--devices` that started it has gone."""
    parent = os.environ.get("FASTMIM_PARENT")
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
