"""How a run ended, for those who call fastmim from Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.reporting import writing
from fastmim.system.run_directory import RunDirectory


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    out: Path
    step: int
    total_steps: int

    @property
    def finished(self) -> bool:
        """False if a signal stopped the run; the same call resumes it."""
        return self.step == self.total_steps

    @property
    def weights(self) -> Path:
        """The trained network, once the run has finished."""
        return RunDirectory(self.out).weights

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, a dict for each, as `pandas.DataFrame` takes them."""
        return RunDirectory(self.out).read_metrics()

    def report(self) -> Path:
        """Write the run's report.html, and return it."""
        return writing.write([self.out])[0]
