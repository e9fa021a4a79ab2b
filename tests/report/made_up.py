"""Run directories that no training made: any course of the metrics, in no time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

START = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)

PRETRAIN: dict[str, Any] = {
    "data": "photos",
    "out": "runs/photos",
    "recipe": None,
    "backbone": "vit_small_patch16_224",
    "mask_ratio": 0.75,
    "lr": 0.0003,
    "log_every": 10,
    "steps": 1000,
}


def make_run(
    path: Path,
    *,
    loss: Callable[[np.ndarray], np.ndarray] = lambda t: 0.05 + 0.1 * np.exp(-5 * t),
    num_lines: int = 100,
    total: int | None = None,
    settings: Mapping[str, Any] = PRETRAIN,
    command: str = "pretrain",
    finished: bool = True,
    noise: float = 0.001,
    **metrics: Callable[[np.ndarray], np.ndarray],
) -> Path:
    """Write a run of `num_lines` log lines, ten steps apart.

    Args:
        path: The run directory to make.
        loss: The loss as a function of the share of the run, from 0 to 1.
        num_lines: Log lines.
        total: Planned steps. [default: those logged]
        settings: What config.yaml holds.
        command: What starts.jsonl names.
        finished: Write weights too.
        noise: Standard deviation of the loss around its course.
        metrics: Further metrics, or other courses of those that every run has. Names that begin with `probe_` or
            `val_` are logged at every tenth line.
    """
    path.mkdir(parents=True)
    share = np.linspace(0, 1, num_lines)
    random = np.random.default_rng(0)
    each: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "lr": lambda t: 3e-4 * (1 - t),
        "grad_norm": lambda t: 0.2 + 0.05 * t,
        "images_per_s": lambda t: 1500 + 20 * np.sin(40 * t),
        "data_wait_share": lambda t: 0.02 + 0 * t,
        "memory_gb": lambda t: 5 + 0 * t,
        "skipped_steps": lambda t: 0 * t,
    } | metrics
    values = {name: course(share) for name, course in each.items()}
    values["loss"] = loss(share) + noise * random.standard_normal(num_lines)
    seldom = [name for name in values if name.startswith(("probe_", "val_"))]
    lines = []
    for index in range(num_lines):
        step = 10 * (index + 1)
        time = {"step": step, "time": (START + timedelta(seconds=2 * index)).isoformat(timespec="milliseconds")}
        line = time | {"images": step * 256, "epoch": step / 100, "seconds_per_step": 0.2}
        lines.append(line | {name: _json(column[index]) for name, column in values.items() if name not in seldom})
        if seldom and (index % 10 == 9 or index == num_lines - 1):
            lines.append(time | {name: _json(values[name][index]) for name in seldom})
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    planned = total or 10 * num_lines
    about = {"steps": planned, "out": str(path)}
    versions = {"fastmim": "0.1.0", "torch": "2.11.0"}
    (path / "config.yaml").write_text(yaml.safe_dump({**settings, **about, "versions": versions}))
    add_start(path, command=command, total_steps=planned)
    if finished:
        (path / "weights.safetensors").write_bytes(b"weights")
    return path


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def add_start(path: Path, *, step: int = 0, hours: float = 0.0, **facts: Any) -> None:
    """Add a start to a run."""
    start = {
        "time": (START + timedelta(hours=hours)).isoformat(),
        "step": step,
        "num_images": 12_000,
        "stages": [{"size": 128, "start": 0, "stop": 600}, {"size": 160, "start": 600, "stop": 1000}],
        "processes": 2,
        "hardware": {"processor": "a processor", "cores": 8, "device": "cuda:0", "accelerator": "an accelerator"},
        "versions": {"fastmim": "0.1.0", "torch": "2.11.0"},
        "defaults": {"lr": 0.00015},
    }
    with (path / "starts.jsonl").open("a") as file:
        file.write(json.dumps(start | facts) + "\n")


def add_pictures(path: Path, steps: range, *, rows: int = 3, titles: tuple[str, ...] = ("image", "prediction")) -> None:
    """Draw sheets of panels, which become brighter with the steps; the first panel stays."""
    (path / "samples").mkdir(exist_ok=True)
    random = np.random.default_rng(1)
    first = random.integers(0, 255, (rows, 96, 96, 3), dtype=np.uint8)
    for number, step in enumerate(steps):
        sheet = Image.new("RGB", (16 + len(titles) * 104 + 8, 92 + rows * 104 + 8), "white")
        for row in range(rows):
            for column in range(len(titles)):
                brightness = 1 if column == 0 else (number + 1) / len(steps)
                panel = Image.fromarray((first[row] * brightness).astype(np.uint8))
                sheet.paste(panel, (16 + column * 104, 92 + row * 104))
        places = {"left": 16, "top": 92, "width": 96, "height": 96, "gap": 8, "rows": rows, "titles": list(titles)}
        text = PngInfo()
        text.add_text("fastmim", json.dumps(places))
        sheet.save(path / "samples" / f"step_{step:09d}.png", pnginfo=text)
