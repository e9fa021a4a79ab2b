"""What a run says while it runs: metrics.jsonl always, a live bar or plain lines, trackers by choice."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from fastmim.training.trackers import Tracker

PLAIN_LINE_SECONDS = 10.0


class Logs:
    """Writes each log step to metrics.jsonl, the console and the trackers.

    Args:
        out: The run directory.
        total_steps: Steps of the whole run.
        step: The step the run goes on from; later lines of metrics.jsonl (from after the last checkpoint)
            are dropped, for they will be written again.
        trackers: From `open_trackers`.
        console: Where progress is shown; a live bar on a terminal, else a line every ten seconds.
    """

    def __init__(
        self,
        out: Path,
        *,
        total_steps: int,
        step: int = 0,
        trackers: list[Tracker] | None = None,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(stderr=False, highlight=False)
        self._path = out / "metrics.jsonl"
        self._total = total_steps
        self._trackers = trackers or []
        _drop_after(self._path, step)
        self._file = self._path.open("a", buffering=1)
        self._said = 0.0
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
        """Record a log step; one with a loss is shown on the console too."""
        # JSON has no NaN: a line without any finite step says null.
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker.log(step, metrics)
        if "loss" not in metrics:
            return
        facts = describe(metrics)
        self._bar.update(self._task, completed=step, facts=facts)
        due = time.monotonic() - self._said > PLAIN_LINE_SECONDS
        if not self._live and (due or step == self._total):
            self._said = time.monotonic()
            self.console.print(
                f"step {step}/{self._total}  {facts}  {_left(metrics, self._total - step)}", soft_wrap=True
            )

    def say(self, message: str) -> None:
        """A line for the reader, above the bar."""
        self._bar.console.print(message, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Stop the bar and flush everything to the disk."""
        if self._live:
            self._bar.stop()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def describe(metrics: dict[str, float]) -> str:
    """The numbers of a log step that people watch, in one short line."""
    rate, wait = metrics["images_per_s"], metrics["data_wait_share"]
    return f"epoch {metrics['epoch']:.1f}  loss {metrics['loss']:.4f}  {rate:,.0f} images/s  data wait {wait:.0%}"


def _left(metrics: dict[str, float], steps: int) -> str:
    seconds = round(steps * metrics["seconds_per_step"])
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


def _drop_after(path: Path, step: int) -> None:
    """Rewrite metrics.jsonl without lines of later steps and without a half-written last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    partial = path.with_suffix(".tmp")
    partial.write_text("".join(f"{line}\n" for line in kept))
    partial.replace(path)
