"""The measurements between two log lines, kept on the device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from fastmim.system.devices import memory_gb

PATIENCE = 10
"""Non-finite steps in a row after which a run stops."""

_TOO_LONG, _SHOWN_AFTER = 0.2, 10.0
"""Share of the time that the device may wait for data before the user is told, and seconds before it is judged."""


_KINDS = ("waiting", "loading", "forward", "paused")
"""Waiting for the data of all processes; of it, for this one's; forward passes; pauses, which rates leave out."""


class Own(NamedTuple):
    """What a process does at its own speed, without waiting for others, between two log lines."""

    loading_share: float
    """Share of the time that it waits for its data."""
    forward_seconds: float
    """Seconds of a step's forward passes; on CUDA of one pass."""


class Meter:
    """Sums over the steps since the last log line, kept on the device and read once a line.

    Args:
        step: The step that the run begins or resumes at.
        device: Of the model.
        batch_size: Images per step.
        steps_per_epoch: To tell the epoch.
        faster_data: Advice if the device waits for data.
        state: What `state` returned at that step.
    """

    def __init__(
        self,
        step: int,
        *,
        device: torch.device,
        batch_size: int,
        steps_per_epoch: int,
        faster_data: str = "",
        state: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    ) -> None:
        self.device, self._batch_size, self._steps_per_epoch = device, batch_size, steps_per_epoch
        self._faster_data = faster_data
        # loss, finite steps, non-finite in a row, skipped in all
        self._sums = torch.tensor(state, dtype=torch.float32, device=device)
        self._norm = torch.zeros((), device=device)
        self._from_step = step
        self._start = time.perf_counter()
        self._seconds = dict.fromkeys(_KINDS, 0.0)
        self._events = [torch.Event(device, enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self.own = Own(0.0, 0.0)
        self._lines = 0
        self._waited, self._lasted = 0.0, 0.0  # seconds, without the first log line
        self._hinted = False
        self._seen = 0
        self._copy: tuple[Tensor, torch.Event] | None = None

    def add(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Count a step; return 1.0 if it is not finite and must be skipped, else 0.0, as a tensor on the device."""
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        total, count, in_a_row, skipped = self._sums.unbind()
        total = total + torch.where(finite, loss, 0.0)
        enough = in_a_row >= PATIENCE  # stays: the run is about to stop, wherever it looks next
        in_a_row = torch.where(enough, in_a_row, torch.where(finite, 0.0, in_a_row + 1))
        self._sums = torch.stack([total, count + finite, in_a_row, skipped + ~finite])
        self._norm = norm
        return (~finite).float()

    def in_a_row(self, *, wait: bool = False) -> int:
        """Non-finite steps in a row; unless it waits for the device, the answer may be some steps old."""
        if wait or self.device.type == "cpu":
            return int(self._sums[2])
        if self._copy and self._copy[1].query():
            self._seen = int(self._copy[0])
            self._copy = None
        if self._copy is None:
            copy, event = self._sums[2].to("cpu", non_blocking=True), torch.Event(self.device)
            event.record()
            self._copy = copy, event
        return self._seen

    def state(self) -> list[float]:
        """The sums, for a checkpoint; waits for the device."""
        return self._sums.tolist()

    def skipped(self) -> int:
        """Steps of the whole run that were not finite; waits for the device."""
        return int(self._sums[3])

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Count the time inside as one of `_KINDS`."""
        start = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - start

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Time a forward pass; on CUDA the device does, and only the last one before a log line counts."""
        with self.timing("forward"):
            if self._events:
                self._events[0].record()
            yield
            if self._events:
                self._events[1].record()

    def read(self, step: int, rate: float) -> dict[str, float]:
        """Return the metrics of a log line, and start the next; waits for the device."""
        loss, count, _, skipped, norm = [*self._sums.tolist(), self._norm.item()]
        now = time.perf_counter()
        steps, seconds = step - self._from_step, now - self._start - self._seconds["paused"]
        metrics = {
            "images": step * self._batch_size,
            "epoch": step / self._steps_per_epoch,
            "loss": loss / count if count else float("nan"),
            "lr": rate,
            "grad_norm": norm,
            "images_per_s": steps * self._batch_size / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_share": self._seconds["waiting"] / seconds,
            "memory_gb": memory_gb(self.device),
            "skipped_steps": skipped,
        }
        self._lines += 1
        if self._lines > 1:  # workers start and kernels compile before the first
            self._waited += self._seconds["waiting"]
            self._lasted += seconds
        passes = (
            self._events[0].elapsed_time(self._events[1]) / 1000 if self._events else self._seconds["forward"] / steps
        )
        self.own = Own(self._seconds["loading"] / seconds, passes)
        self._sums[:2] = 0
        self.restart(step)
        return metrics

    def restart(self, step: int) -> None:
        """Leave the time until now out of the next line's rates, with the steps that were made in it."""
        self._from_step, self._start, self._seconds = step, time.perf_counter(), dict.fromkeys(_KINDS, 0.0)

    def hint(self) -> str | None:
        """Return advice if the device is starved for data; at most once."""
        share = self._waited / self._lasted if self._lasted else 0.0
        if self._hinted or not self._faster_data or self._lasted < _SHOWN_AFTER or share < _TOO_LONG:
            return None
        self._hinted = True
        return f"the device waited {share:.0%} of the time for data: {self._faster_data}"
