"""How everything is measured and written down: turns, medians, one dated JSON a claim."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastmim.errors import RequestError

PACKAGES = ("fastmim", "torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg")

Seconds = dict[str, list[float]]
"""A side's name -> what it took in each round."""
Sides = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Times:
    """What sides took that took turns, by two clocks."""

    cpu: Seconds
    wall: Seconds
    on_cpu: bool

    @property
    def seconds(self) -> Seconds:
        """By the clock that counts: on a CPU its own time, which other programs on the machine change little."""
        return self.cpu if self.on_cpu else self.wall

    def rates(self, num_images: int) -> dict[str, dict[str, float]]:
        """Median images per second of the wall's clock and, on a CPU, of CPU time."""
        clocks = {"images_per_s": self.wall} | ({"images_per_cpu_s": self.cpu} if self.on_cpu else {})
        return {
            side: {name: num_images / statistics.median(seconds[side]) for name, seconds in clocks.items()}
            for side in self.wall
        }

    def raw(self) -> dict[str, Seconds]:
        """For a record."""
        return {"wall_seconds": self.wall} | ({"cpu_seconds": self.cpu} if self.on_cpu else {})


def take_turns(sides: Sides, *, rounds: int, device: str = "cpu", warm_up: int = 1) -> Times:
    """Time every side once a round, so that a noisy moment hits them all.

    Args:
        sides: What to run, by name.
        rounds: Rounds that count.
        device: Where they run; waited for before each look at the clocks.
        warm_up: Rounds before them, for imports, compilation and caches.
    """
    cpu: Seconds = {name: [] for name in sides}
    wall: Seconds = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, run in sides.items():
            synchronize(device)
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            synchronize(device)
            if number >= warm_up:
                cpu[name].append(time.process_time() - cpu_start)
                wall[name].append(time.perf_counter() - start)
    return Times(cpu, wall, on_cpu=device == "cpu")


def alternate(sides: Sides, *, rounds: int, clock: Callable[[], float] = time.process_time) -> Seconds:
    """Seconds of each side in each round by one clock, the sides taking turns."""
    seconds: Seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def synchronize(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device != "cpu":
        import torch

        torch.accelerator.synchronize()


def ratios(seconds: Seconds, *, baseline: str, side: str) -> dict[str, float]:
    """How many times less `side` took than `baseline`, paired round by round: median and range."""
    paired = [a / b for a, b in zip(seconds[baseline], seconds[side], strict=True)]
    return {"median": statistics.median(paired), "min": min(paired), "max": max(paired)}


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on."""
    about: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "device": device}
    if device.startswith("cuda"):
        import torch

        about["accelerator"] = torch.cuda.get_device_name(device)
    return about


def command() -> str:
    """How this process was started, without the machine's own paths."""
    script = Path(sys.argv[0])
    start = f"python {script.as_posix()}" if script.suffix == ".py" and script.stem != "__main__" else "fastmim"
    return " ".join([start, *sys.argv[1:]])


def write(
    folder: Path,
    name: str,
    *,
    claim: str,
    config: dict[str, Any],
    raw: dict[str, Any],
    summary: dict[str, Any],
    device: str = "cpu",
) -> Path:
    """Write `<folder>/<name>-<date>.json`; a later one of the same day takes its place.

    Raises:
        RequestError: the folder cannot be written.
    """
    record = {
        "name": name,
        "claim": claim,
        "date": date.today().isoformat(),
        "command": command(),
        "hardware": hardware(device),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "config": config,
        "summary": rounded(summary),
        "raw": raw,
    }
    path = folder / f"{name}-{record['date']}.json"
    prepare(folder)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def prepare(folder: Path) -> None:
    """Make the folder for records.

    Raises:
        RequestError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".trial.tmp"
        trial.write_text("")
        trial.unlink()
    except OSError as error:
        raise RequestError(f"records is {folder}: {error.strerror}; expected a directory that can be written") from None


def newest(folder: Path, name: str) -> Path | None:
    """The newest record of that name."""
    return max(folder.glob(f"{name}-[0-9]*.json"), default=None)


def rounded(value: Any) -> Any:
    """The same with floats of five significant digits, which is more than any of them is good for."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
