"""Reading a run directory of any kind, as it is: half written, damaged or made by another version."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fastmim import config as configs
from fastmim.errors import RequestError, RunError, first_line
from fastmim.reporting import metrics
from fastmim.reporting.metrics import Metrics
from fastmim.system import files
from fastmim.system.run_directory import RunDirectory

T = TypeVar("T")

STALE_SECONDS, STALE_INTERVALS = 600.0, 10.0
"""A run is stale if it has written nothing for ten minutes and for ten times as long as between two log lines."""

_CHECKPOINT = re.compile(r"step_(\d{9,})")
_MAX_TEXT = 1 << 22  # bytes of a file other than the metrics
_MAX_LISTED = 1000


@dataclass
class Run:
    """What a run directory holds; what is missing is empty."""

    path: Path
    label: str = ""
    """What to call it, if not by the directory's name."""
    kind: str = "training"
    """`pretrain`, `finetune`, another command, or `training` if nothing says."""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    starts: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    adaptation: dict[str, Any] = field(default_factory=dict)
    """Scores of an adapted network before and after, and their verdict."""
    blocks: list[dict[str, Any]] = field(default_factory=list)
    """Numbers of each block of the backbone, in order."""
    saves: list[int] = field(default_factory=list)
    """Steps of the checkpoints."""
    bad_images: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason), the first thousand."""
    num_bad: int = 0
    problems: list[str] = field(default_factory=list)
    """What could not be read, in words."""
    state: str = "running"
    """`finished`, `stopped`, `running`, `stale` or `empty`."""
    silent_seconds: float = 0.0
    """Since something was written."""

    @property
    def name(self) -> str:
        """What the page calls it."""
        return self.label or self.path.resolve().name

    @property
    def total_steps(self) -> int:
        """Planned steps; those made, if nothing says."""
        planned = self.fact("total_steps", int) or self.settings.get("steps")
        return planned if type(planned) is int and planned > 0 else self.metrics.step

    def fact(self, name: str, kind: type[T]) -> T | None:
        """A fact of the last start that has this type."""
        for start in reversed(self.starts):
            if isinstance(value := start.get(name), kind):
                return value
        return None

    @property
    def seconds(self) -> float:
        """Seconds of training, without pauses for pictures, evaluations and saves."""
        steps, each = self.metrics["seconds_per_step"]
        return float((each * (steps - [0, *steps[:-1]])).sum()) if len(steps) else 0.0

    @property
    def device_hours(self) -> float:
        """Hours of training, times the processes that shared them."""
        return self.seconds / 3600 * (self.fact("processes", int) or 1)


def read(path: Path, *, label: str = "", now: datetime | None = None, ended: bool | None = None) -> Run:
    """Read a run directory.

    Args:
        path: The run directory.
        label: What to call it. [default: the directory's name]
        now: The time that decides whether the run is stale. [default: now]
        ended: Whether the run has ended, if the caller knows.

    Raises:
        RequestError: it is not the directory of a run.
    """
    directory = RunDirectory(path)
    known = (directory.config, directory.metrics, directory.starts, directory.checkpoints)
    if not files.is_folder(path) or not any(files.exists(file) for file in known):
        raise RequestError(
            f"run is {path}; expected a run directory, with a config.yaml or a metrics.jsonl, as `fastmim pretrain` "
            f"makes"
        )
    run = Run(path, label)
    run.settings = _attempt(run, directory.config, configs.read, {})
    run.versions = _attempt(run, directory.config, _versions, {}) if run.settings else {}
    run.metrics = _attempt(run, directory.metrics, metrics.read, Metrics())
    run.starts = _attempt(run, directory.starts, _json_lines, [])
    run.evaluation = _attempt(run, directory.evaluation, files.read_json, {})
    run.adaptation = _attempt(run, directory.adaptation, files.read_json, {})
    run.blocks = _attempt(run, directory.blocks, _blocks, [])
    lines: list[str] = _attempt(run, directory.bad_images, _lines, [])
    run.num_bad = len(lines)
    run.bad_images = [(name, reason) for name, _, reason in (line.partition("\t") for line in lines[:_MAX_LISTED])]
    run.saves = _attempt(run, directory.checkpoints, _saved_steps, [])
    run.kind = _kind(run)
    if run.metrics.num_unreadable:
        run.problems.append(
            f"{directory.metrics.name}: {run.metrics.num_unreadable:,} of {run.metrics.num_lines:,} lines are not the "
            f"metrics of a step"
        )
    _judge_state(run, directory, now or datetime.now(UTC), ended)
    return run


def _attempt(run: Run, path: Path, reader: Callable[[Path], T], otherwise: T) -> T:
    """What a file holds; a file that cannot be read is a problem, one that is missing is not."""
    if not files.exists(path):
        return otherwise
    try:
        return reader(path)
    except (OSError, RequestError, RunError, ValueError) as error:
        run.problems.append(f"{path.name} cannot be read ({first_line(error)[:200]})")
        return otherwise


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_TEXT:
        raise OSError(f"larger than {_MAX_TEXT >> 20} MiB")
    return files.read_regular(path).decode("utf-8", "backslashreplace")


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _versions(path: Path) -> dict[str, Any]:
    """The versions that config.yaml lists; `configs.read` has checked the file before."""
    settings = yaml.safe_load(_text(path))
    found = settings.get("versions") if isinstance(settings, dict) else None
    return found if isinstance(found, dict) else {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in _text(path).splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _blocks(path: Path) -> list[dict[str, Any]]:
    found = files.read_json(path).get("blocks")
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("expected a list of blocks")
    return found[:_MAX_LISTED]


def _saved_steps(folder: Path) -> list[int]:
    return sorted(int(match[1]) for item in folder.iterdir() if (match := _CHECKPOINT.fullmatch(item.name)))


def _kind(run: Run) -> str:
    if command := run.fact("command", str):
        return command
    if "mask_ratio" in run.settings:
        return "pretrain"
    return "finetune" if "mixup" in run.settings else "training"


def parse_time(text: Any) -> datetime | None:
    """A time in ISO 8601, in UTC unless it says otherwise; None for anything else."""
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def _judge_state(run: Run, directory: RunDirectory, now: datetime, ended: bool | None) -> None:
    written = parse_time(run.metrics.last_time)
    if written is None:
        present = [file for file in (directory.metrics, directory.starts, directory.config) if files.exists(file)]
        newest = max((file.stat().st_mtime for file in present), default=now.timestamp())
        written = datetime.fromtimestamp(newest, UTC)
    run.silent_seconds = max(0.0, (now - written).total_seconds())
    log_every, each = run.settings.get("log_every"), run.metrics.last("seconds_per_step")
    interval = log_every * each if isinstance(log_every, int) and each else 0.0
    complete = run.metrics.step >= run.total_steps > 0
    if files.exists(directory.weights) and complete:
        run.state = "finished"
    elif ended:
        run.state = "stopped"
    elif ended is None and run.silent_seconds > max(STALE_SECONDS, STALE_INTERVALS * interval):
        run.state = "stale"
    elif not run.metrics.step:
        run.state = "empty"
