"""The `report` command."""

from __future__ import annotations

import functools
from pathlib import Path

from rich.console import Console

from fastmim.cli.app import Switch, app
from fastmim.errors import DONE
from fastmim.system import display


@app.command
def report(
    *runs: Path,
    out: Path | None = None,
    hourly_rate: float | None = None,
    watch: Switch = False,
) -> int:
    """Show runs on one HTML page: whether they learn, curves, pictures, scores, settings, and what to do next.

    The page is one file that loads nothing from anywhere. Training writes it too, as report.html in the run directory.

    Parameters
    ----------
    runs
        Run directories; several are compared. Or the directory of a study.
    out
        HTML file to write. [default: report.html in the run directory; in the working directory for several runs]
    hourly_rate
        Price of a device-hour, to show what a run has cost.
    watch
        Write the page again whenever a run logs, until it ends; the open page reloads itself.
    """
    from fastmim.reporting import writing

    say = functools.partial(display.say, Console(highlight=False))
    if watch:
        writing.watch(runs, out=out, hourly_rate=hourly_rate, say=say)
    else:
        say(f"wrote {writing.report(*runs, out=out, hourly_rate=hourly_rate)}")
    return DONE
