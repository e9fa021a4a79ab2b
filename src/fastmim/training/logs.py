"""The log of a run: metrics.jsonl, a live progress bar or plain lines on the console, and trackers."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from fastmim.system.display import say
from fastmim.system.run_directory import RunDirectory
from fastmim.training.trackers import Tracker

PLAIN_LINE_SECONDS = 10.0


class Logs:
    """Writes each log step to metrics.jsonl, the console and the trackers.

    Args:
        directory: The run directory.
        total_steps: Steps of the whole run.
        step: The step that the run resumes at. Later lines of metrics.jsonl, written after the last checkpoint,
            are removed because they will be written again.
        trackers: From `open_trackers`.
        console: Where progress is shown: a live bar on a terminal, else a line every ten seconds.
        writes: False in the processes of a run that leave metrics.jsonl to the main one.
    """

    def __init__(
        self,
        directory: RunDirectory,
        *,
        total_steps: int,
        step: int = 0,
        trackers: list[Tracker] | None = None,
        console: Console | None = None,
        writes: bool = True,
    ) -> None:
        self.console = console or Console(stderr=False, highlight=False)
        self._total = total_steps
        self._trackers = trackers or []
        if writes:
            directory.drop_metrics_after(step)
        self._file = (directory.metrics if writes else Path(os.devnull)).open("a", buffering=1, encoding="utf-8")
        self._last_line = 0.0
        no_wrap = Column(no_wrap=True)
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}", table_column=no_wrap),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[facts]}", table_column=no_wrap),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("train", total=total_steps, completed=step, facts="starting")
        self._live = self.console.is_terminal
        if self._live:
            self._bar.start()

    def advance(self, step: int) -> None:
        """Move the bar; cheap enough for every step."""
        if self._live:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step and the time; those with a loss are shown on the console too."""
        # JSON has no NaN: a line without any finite step says null.
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        line = {"step": step, "time": now} | {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker.log(step, metrics)
        if "loss" not in metrics:
            return
        facts = describe(metrics)
        self._bar.update(self._task, completed=step, facts=facts)
        due = time.monotonic() - self._last_line > PLAIN_LINE_SECONDS
        if not self._live and (due or step == self._total):
            self._last_line = time.monotonic()
            say(self.console, f"step {step}/{self._total}  {facts}  {_left(metrics, self._total - step)}")

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        say(self._bar.console, message)

    def close(self) -> None:
        """Stop the bar, close the trackers, and flush metrics.jsonl to the disk.

        Raises:
            OSError: metrics.jsonl cannot be written.
        """
        if self._live:
            self._bar.stop()
        for tracker in self._trackers:
            tracker.close()
        with self._file:
            self._file.flush()
            if self._file.name != os.devnull:
                os.fsync(self._file.fileno())

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(OSError) if kind else nullcontext():  # the error that ended the block says more
            self.close()


def describe(metrics: dict[str, float]) -> str:
    """Format the metrics that people watch in one short line."""
    rate, wait = metrics["images_per_s"], metrics["data_wait_share"]
    return f"epoch {metrics['epoch']:.1f}  loss {metrics['loss']:.4f}  {rate:,.0f} images/s  data wait {wait:.0%}"


def _left(metrics: dict[str, float], steps: int) -> str:
    seconds = round(steps * metrics["seconds_per_step"])
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
