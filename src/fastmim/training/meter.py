"""What is measured between two log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastmim.system.devices import memory_gb

# The share of the time that a device may wait for data before the user is told, and after how many seconds.
_TOO_LONG, _SHOWN_AFTER = 0.2, 10.0


class Meter:
    """Sums over the steps since the last log line, kept on the device and read once a line."""

    def __init__(
        self, step: int, *, device: torch.device, batch_size: int, steps_per_epoch: int, faster_data: str = ""
    ) -> None:
        self._device, self._batch_size, self._steps_per_epoch = device, batch_size, steps_per_epoch
        self._faster_data = faster_data
        self._sums = torch.zeros(4, device=device)  # loss, finite steps, non-finite in a row, skipped in all
        self._norm = torch.zeros((), device=device)
        self._from_step = step
        self._start = time.perf_counter()
        self._seconds = {"waiting": 0.0, "paused": 0.0}
        self._lines = 0
        self._waited, self._lasted = 0.0, 0.0  # seconds of all log lines but the first
        self._hinted = False
        self.in_a_row = 0
        """Non-finite steps in a row, as of the last `read`."""

    def add(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Count a step; returns float 1 where it is not finite and must be skipped, without leaving the device."""
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        total, count, in_a_row, skipped = self._sums.unbind()
        total = total + torch.where(finite, loss, 0.0)
        in_a_row = torch.where(finite, 0.0, in_a_row + 1)
        self._sums = torch.stack([total, count + finite, in_a_row, skipped + ~finite])
        self._norm = norm
        return (~finite).float()

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Count the time inside as "waiting" for data, or as "paused" (left out of the rates)."""
        start = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - start

    def read(self, step: int, rate: float) -> dict[str, float]:
        """The metrics of a log line; waits for the device."""
        loss, count, in_a_row, skipped, norm = [*self._sums.tolist(), self._norm.item()]
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
            "memory_gb": memory_gb(self._device),
            "skipped_steps": skipped,
        }
        self.in_a_row = int(in_a_row)
        self._lines += 1
        if self._lines > 1:  # workers start and kernels compile before the first
            self._waited += self._seconds["waiting"]
            self._lasted += seconds
        self._sums[:2] = 0
        self._from_step, self._start, self._seconds = step, now, {"waiting": 0.0, "paused": 0.0}
        return metrics

    def hint(self) -> str | None:
        """Where the device waits for data, what to do about it; once, when it has shown."""
        share = self._waited / self._lasted if self._lasted else 0.0
        if self._hinted or not self._faster_data or self._lasted < _SHOWN_AFTER or share < _TOO_LONG:
            return None
        self._hinted = True
        return f"the device waited {share:.0%} of the time for data: {self._faster_data}"
