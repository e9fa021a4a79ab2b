"""How every benchmark measures and what it writes: alternating rounds, medians, one dated JSON a claim."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


def alternate(
    sides: dict[str, Callable[[], Any]], *, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each side in each round, the sides taking turns so that a noisy moment hits them all."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], *, baseline: str, side: str) -> dict[str, float]:
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

        about["accelerator"] = torch.cuda.get_device_name()
    return about


def write(
    name: str,
    *,
    claim: str,
    config: dict[str, Any],
    raw: dict[str, Any],
    summary: dict[str, Any],
    device: str = "cpu",
) -> Path:
    """Write `records/<name>-<date>.json` and print its summary."""
    record = {
        "name": name,
        "claim": claim,
        "date": date.today().isoformat(),
        "command": "python " + " ".join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]]),
        "hardware": hardware(device),
        "versions": {"python": platform.python_version()}
        | {p: version(p) for p in ("fastmim", "torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg")},
        "config": config,
        "summary": summary,
        "raw": raw,
    }
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{name}-{record['date']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    print(f"wrote {path.name}")
    return path
