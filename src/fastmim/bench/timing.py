"""Timing that treats all sides alike: they take turns, and ratios are paired by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Seconds = dict[str, list[float]]
"""Seconds of each round, by the side's name."""
Sides = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Times:
    """Seconds of sides that took turns, by two clocks."""

    cpu: Seconds
    wall: Seconds
    on_cpu: bool

    @property
    def seconds(self) -> Seconds:
        """CPU time on a CPU, which other programs on the machine hardly change; wall-clock time elsewhere."""
        return self.cpu if self.on_cpu else self.wall

    def rates(self, num_images: int) -> dict[str, dict[str, float]]:
        """Median images per second of wall-clock time and, on a CPU, of CPU time."""
        clocks = {"images_per_s": self.wall} | ({"images_per_cpu_s": self.cpu} if self.on_cpu else {})
        return {
            side: {name: num_images / statistics.median(seconds[side]) for name, seconds in clocks.items()}
            for side in self.wall
        }

    def raw(self) -> dict[str, Seconds]:
        """All seconds, for a record."""
        return {"wall_seconds": self.wall} | ({"cpu_seconds": self.cpu} if self.on_cpu else {})


def take_turns(sides: Sides, *, rounds: int, device: str = "cpu", warm_up: int = 1) -> Times:
    """Run every side once a round, so that a noisy moment hits them all.

    Args:
        sides: What to time, by name.
        rounds: Rounds that are timed.
        device: Where they run; the host waits for it before it reads a clock.
        warm_up: Untimed rounds before them, for imports, compilation and caches.
    """
    cpu: Seconds = {name: [] for name in sides}
    wall: Seconds = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, run in sides.items():
            _synchronize(device)
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            _synchronize(device)
            if number >= warm_up:
                cpu[name].append(time.process_time() - cpu_start)
                wall[name].append(time.perf_counter() - start)
    return Times(cpu, wall, on_cpu=device == "cpu")


def ratios(seconds: Seconds, *, baseline: str, side: str) -> dict[str, float]:
    """How many times less `side` took than `baseline`, paired by round: median and range."""
    return spread([a / b for a, b in zip(seconds[baseline], seconds[side], strict=True)])


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _synchronize(device: str) -> None:
    if device != "cpu":
        import torch

        torch.accelerator.synchronize()
