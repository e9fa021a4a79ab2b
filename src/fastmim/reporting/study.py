"""A study's directory: its table, and the runs in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmim.errors import RequestError, RunError, first_line
from fastmim.reporting import reading
from fastmim.reporting.reading import Run
from fastmim.reporting.tables import Table
from fastmim.system import files

_MAX_RUNS = 400


@dataclass(frozen=True)
class Point:
    """A pre-training that was compared, with its accuracy and cost."""

    name: str
    seconds: float
    """Device-seconds, fine-tuning included."""
    top1: float
    """In percent, the mean over the seeds."""
    deviation: float


@dataclass
class Study:
    """What a study's directory holds."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    """The pre-trainings, seed by seed."""
    num_done: int = 0
    """Trials that are done, of those that have begun."""
    num_begun: int = 0
    tables: list[Table] = field(default_factory=list)
    points: dict[str, list[Point]] = field(default_factory=dict)
    """By number of labels."""
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name


def is_study(path: Path) -> bool:
    """Whether this is the directory of a study."""
    return (path / "runs").is_dir() and ((path / "plan.json").is_file() or (path / "record.json").is_file())


def read(path: Path) -> Study:
    """Read a study, finished or not."""
    study = Study(path)
    for trial in sorted((path / "runs").iterdir())[:_MAX_RUNS]:
        if not (trial / "trial.json").is_file():
            continue
        study.num_begun += 1
        try:
            names = list(files.read_json(trial / "trial.json"))
        except (OSError, RunError) as error:
            study.problems.append(f"{trial.name}: {first_line(error)[:200]}")
            continue
        study.num_done += all((trial / f"{name}.json").is_file() for name in names)
        if (trial / "pretrain").is_dir():
            try:
                study.runs.append(reading.read(trial / "pretrain", label=trial.name))
            except RequestError as error:
                study.problems.append(f"{trial.name}: {first_line(error)[:200]}")
    if (path / "record.json").exists():
        try:
            _add_record(study, files.read_json(path / "record.json"))
        except (OSError, RunError, KeyError, TypeError, ValueError, AttributeError) as error:
            study.problems.append(f"record.json is not the record of a study ({first_line(error)[:200]})")
    return study


def _add_record(study: Study, record: dict[str, Any]) -> None:
    summary, study.settings = record["summary"], record["config"]
    labels = list(next(iter(summary.values()))["top1"])
    rows = []
    for name, point in summary.items():
        cost = point.get("pretrain", {}).get("device_seconds", {}).get("mean", 0.0)
        row = [name, f"{cost:,.0f}"]
        for number in labels:
            found = point["top1"][number]
            gain = f" ({found['gain']['mean']:+.2f})" if "gain" in found else ""
            deviation = float(found["deviation"] or 0.0)
            row.append(f"{found['mean']:.2f} ± {deviation:.2f}{gain}")
            seconds = float(point["total_device_seconds"][number]["mean"])
            study.points.setdefault(number, []).append(Point(name, seconds, float(found["mean"]), deviation))
        rows.append(row)
    header = ["pre-training", "device-seconds", *(f"top-1 with {int(number):,} labels" for number in labels)]
    note = (
        f"Top-1 in %, mean ± standard deviation over {json.dumps(record['config']['seeds'])} seeds; in brackets the "
        f"gain over the same network from scratch."
    )
    study.tables.append(Table("Results", header, rows, note=note, numbers=True))
