"""The measurements between two log lines, kept on the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastmim.system.devices import memory_gb

_TOO_LONG, _SHOWN_AFTER = 0.2, 10.0
"""Share of the time that the device may wait for data before the user is told, and seconds before it is judged."""


class Meter:
    """Sums over the steps since the last log line, kept on the device and read once a line."""

    def __init__(
        self, step: int, *, device: torch.device, batch_size: int, steps_per_epoch: int, faster_data: str = ""
    ) -> None:
        self.device, self._batch_size, self._steps_per_epoch = device, batch_size, steps_per_epoch
        self._faster_data = faster_data
        self._sums = torch.zeros(4, device=device)  # loss, finite steps, non-finite in a row, skipped in all
        self._norm = torch.zeros((), device=device)
        self._from_step = step
        self._start = time.perf_counter()
        self._seconds = {"waiting": 0.0, "paused": 0.0}
        self._lines = 0
        self._waited, self._lasted = 0.0, 0.0  # seconds, without the first log line
        self._hinted = False
        self.in_a_row = 0
        """Non-finite steps in a row, as of the last `read`."""

    def add(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Count a step; return 1.0 if it is not finite and must be skipped, else 0.0, as a tensor on the device."""
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        total, count, in_a_row, skipped = self._sums.unbind()
        total = total + torch.where(finite, loss, 0.0)
        in_a_row = torch.where(finite, 0.0, in_a_row + 1)
        self._sums = torch.stack([total, count + finite, in_a_row, skipped + ~finite])
        self._norm = norm
        return (~finite).float()

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Count the time inside as "waiting" for data or as "paused", which the rates leave out."""
        start = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - start

    def read(self, step: int, rate: float) -> dict[str, float]:
        """Return the metrics of a log line, and start the next; waits for the device."""
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
            "memory_gb": memory_gb(self.device),
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
        """Return advice if the device is starved for data; at most once."""
        share = self._waited / self._lasted if self._lasted else 0.0
        if self._hinted or not self._faster_data or self._lasted < _SHOWN_AFTER or share < _TOO_LONG:
            return None
        self._hinted = True
        return f"the device waited {share:.0%} of the time for data: {self._faster_data}"
