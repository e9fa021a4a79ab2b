"""Writing a report: of runs and studies, once, as a run goes on, or whenever a run has logged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fastmim.errors import RequestError, first_line
from fastmim.reporting import page, reading, study
from fastmim.reporting.reading import Run
from fastmim.system import files
from fastmim.system.run_directory import RunDirectory

WATCH_SECONDS, RELOAD_SECONDS = 2.0, 10
"""Between two looks at a watched run, and after which the open page loads itself again."""


def report(
    *runs: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, hourly_rate: float | None = None
) -> Path:
    """Write one self-contained HTML page of runs: whether they learn, curves, pictures, scores and settings.

    Args:
        runs: Run directories, several of which are compared; or the directory of one study.
        out: The HTML file. [default: report.html in the only directory, or in the working directory]
        hourly_rate: The price of a device-hour, to tell what a run has cost.

    Returns:
        The file.

    Raises:
        RequestError: a directory holds no run, or the file cannot be written.

    Example:
        >>> fastmim.report("runs/photos")
        PosixPath('runs/photos/report.html')
        >>> fastmim.report("runs/photos", "runs/tuned", out="comparison.html")
        PosixPath('comparison.html')
    """
    return write([Path(run) for run in runs], out=None if out is None else Path(out), hourly_rate=hourly_rate)[0]


def write(
    runs: Sequence[Path], *, out: Path | None = None, hourly_rate: float | None = None, watched: bool = False
) -> tuple[Path, bool]:
    """Write the report of one or several runs, or of a study.

    Args:
        runs: Run directories, or the directory of one study.
        out: The HTML file. [default: report.html in the only directory, or in the working directory]
        hourly_rate: The price of a device-hour, to tell what a run has cost.
        watched: Let the open page load itself again while a run goes on.

    Returns:
        The file, and whether any of the runs may still go on.

    Raises:
        RequestError: a directory holds no run, or the file cannot be written.
    """
    if not runs:
        raise RequestError("run is not given; expected one or more run directories: fastmim report runs/photos")
    if hourly_rate is not None and not 0 < hourly_rate < float("inf"):
        raise RequestError(f"hourly_rate is {hourly_rate:g}; expected the price of a device-hour, such as 2.5")
    out = out or (runs[0] / RunDirectory(runs[0]).report.name if len(runs) == 1 else Path("report.html"))
    found = None
    if len(runs) == 1 and study.is_study(runs[0]):
        found = study.read(runs[0])
        read = found.runs
    else:
        read = _read_all(runs)
    goes_on = any(run.state in ("running", "empty") for run in read)
    reload_seconds = RELOAD_SECONDS if watched and goes_on else None
    text = page.render(read, study=found, hourly_rate=hourly_rate, reload_seconds=reload_seconds)
    _save(out, text)
    return out, goes_on


def _read_all(runs: Sequence[Path]) -> list[Run]:
    """The runs; those of the same name are told apart by their paths."""
    names = [path.resolve().name for path in runs]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, runs, strict=True)]
    return [reading.read(path, label=label) for path, label in zip(runs, labels, strict=True)]


def _save(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(out, text)
    except OSError as error:
        raise RequestError(
            f"out is {out}: {error.strerror or error}; expected an HTML file that can be written: name another with "
            f"--out"
        ) from None


def watch(
    runs: Sequence[Path], *, out: Path | None = None, hourly_rate: float | None = None, say: Callable[[str], object]
) -> Path:
    """Write the report now and whenever a run has logged, until none of them goes on any more.

    Raises:
        RequestError: as `write`.
    """
    written, before = None, None
    while True:
        now = [_changed(run) for run in runs]
        if now != before:
            written, goes_on = write(runs, out=out, hourly_rate=hourly_rate, watched=True)
            if before is None:
                say(f"wrote {written}; open it in a browser: it follows the run")
            before = now
        elif goes_on:  # stale by now?
            goes_on = write(runs, out=out, hourly_rate=hourly_rate, watched=True)[1] if _is_due() else True
        if not goes_on:
            assert written
            return written
        time.sleep(WATCH_SECONDS)


def _is_due() -> bool:
    return time.monotonic() % 60 < WATCH_SECONDS


def _changed(run: Path) -> tuple[int, ...]:
    """When the files that a report shows were changed last."""
    directory = RunDirectory(run)
    shown = (directory.metrics, directory.starts, directory.samples, directory.weights, run / "record.json")
    return tuple(path.stat().st_mtime_ns if files.exists(path) else 0 for path in shown)


def keep_current(run: Path, say: Callable[[str], object], *, ended: bool) -> None:
    """Write the report.html of a run or a study from inside it, which must not fail because of that.

    Args:
        run: Its directory.
        say: Prints a line, if the report cannot be written or the run has ended.
        ended: Whether the run has ended; then files get their checksums.
    """
    try:
        found = study.read(run) if study.is_study(run) else None
        runs = found.runs if found else [reading.read(run, ended=ended)]
        text = page.render(runs, study=found, checksums=ended)
        path = RunDirectory(run).report
        files.write_text(path, text)
    except Exception as error:  # training for days must not end for want of a page
        say(f"the report could not be written ({type(error).__name__}: {first_line(error)[:200]})")
        return
    if ended:
        say(f"report: {path}")
