"""A trial: one point of a study with one seed, as a folder of runs and their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.system import files

FILE = "trial.json"
"""The settings of a trial's runs, by the run's name."""


@dataclass(frozen=True)
class Trial:
    """A folder, and the runs to make in it."""

    name: str
    folder: Path
    runs: Callable[[str], dict[str, Any]]
    """Device -> settings by the run's name."""

    def results(self) -> dict[str, Any] | None:
        """The results of all runs by name; None unless all are done."""
        paths = {name: result_file(self.folder, name) for name in self.runs("cpu")}
        done = all(path.exists() for path in paths.values())
        return {name: files.read_json(path) for name, path in paths.items()} if done else None


def result_file(folder: Path, run: str) -> Path:
    """The file with a run's results, which exists once the run is done."""
    return folder / f"{run}.json"
