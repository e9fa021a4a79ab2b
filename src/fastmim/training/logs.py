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
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from fastmim.system.display import say
from fastmim.system.notebook import Place, in_notebook
from fastmim.system.run_directory import RunDirectory
from fastmim.training.trackers import Tracker

PLAIN_LINE_SECONDS = 10.0
_NOTEBOOK_SECONDS = 0.5


class Logs:
    """Writes each log step to metrics.jsonl, the console and the trackers.

    Args:
        directory: The run directory.
        total_steps: Steps of the whole run.
        step: The step that the run resumes at. Later lines of metrics.jsonl, written after the last checkpoint,
            are removed because they will be written again.
        trackers: From `open_trackers`.
        console: Where progress is shown: a live bar on a terminal, one changing line in a notebook, else a line every
            ten seconds.
        writes: False in the processes of a run that leave metrics.jsonl to the main one.
        compiled: The first step compiles, which can take minutes: the time left is told from the second one on.
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
        compiled: bool = False,
    ) -> None:
        self.console = console or Console(stderr=False, highlight=False)
        self._total = total_steps
        self._trackers = trackers or []
        if writes:
            directory.drop_metrics_after(step)
        self._file = (directory.metrics if writes else Path(os.devnull)).open("a", buffering=1, encoding="utf-8")
        self._last_line, self._interval = 0.0, _NOTEBOOK_SECONDS if in_notebook() else PLAIN_LINE_SECONDS
        # A narrow terminal first loses the bar, then what stands on the right.
        text = "step {task.completed}/{task.total}  {task.fields[left]}  {task.fields[facts]}"
        columns = BarColumn(bar_width=20), TextColumn(text, table_column=Column(no_wrap=True))
        self._bar = Progress(*columns, console=self.console)
        self._task = self._bar.add_task("train", total=total_steps, completed=step, facts="starting", left="")
        self._pace: float | None = None  # seconds a step, as measured between log lines
        self._began, self._first = time.monotonic(), (0, 0.0)  # the first step, and when it was done
        self._compiled, self._live = compiled, self.console.is_terminal
        self._place = Place() if in_notebook() and not self.console.quiet else None
        if self._live:
            self._bar.start()

    def advance(self, step: int) -> None:
        """Move the bar; cheap enough for every step. Until the first log line, the pace so far is shown."""
        if self._pace is not None:
            if self._live:
                self._bar.update(self._task, completed=step, left=_left(self._pace * (self._total - step)))
            return
        now, compiles = time.monotonic(), self._compiled and not self._first[0]
        pace = self._early_pace(step, now)
        facts, left = f"{pace:.2g} s a step", _left(pace * (self._total - step))
        if compiles:
            facts, left = f"compiled in {pace:.0f} s", ""
        if self._live:
            self._bar.update(self._task, completed=step, left=left, facts=facts)
        elif now - max(self._began, self._last_line) > self._interval:
            self._print(f"step {step}/{self._total}  {facts}  {left}".rstrip())

    def _early_pace(self, step: int, now: float) -> float:
        """Seconds a step so far; the first one, in which workers start and kernels compile, counts only on its own."""
        first, done = self._first
        if not first:
            self._first = (step, now)
            return now - self._began
        return (now - done) / (step - first)

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
        facts, self._pace = describe(metrics), metrics["seconds_per_step"]
        left = _left(self._pace * (self._total - step))
        self._bar.update(self._task, completed=step, facts=facts, left=left)
        due = time.monotonic() - self._last_line > self._interval
        if not self._live and (due or step == self._total):
            self._print(f"step {step}/{self._total}  {facts}  {left}")

    def _print(self, line: str) -> None:
        """Print a line of progress; in a notebook it takes the place of the last one."""
        self._last_line = time.monotonic()
        if self._place:
            self._place.write(line)
        else:
            say(self.console, line)

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


def _left(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
