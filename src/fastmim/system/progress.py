"""Progress of a long pass over images: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINE_SECONDS = 10.0


@contextmanager
def progress(
    console: Console, *, total: int, done: int = 0, unit: str = "images", scale: int = 1
) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows the count done so far.

    Args:
        total: The count at the end.
        done: The count at which an earlier call stopped; the rate excludes it.
        unit: The unit to show.
        scale: The count per unit, such as 10**6 to show bytes in MB.
    """
    start = shown = time.monotonic()

    def texts(now: int) -> tuple[str, str]:
        """ "512 of 1,024 images", "300 images/s"."""
        rate = (now - done) / scale / max(time.monotonic() - start, 1e-9)
        return f"{now // scale:,} of {total // scale:,} {unit}", f"{rate:,.0f} {unit}/s"

    if console.is_terminal:
        columns = (TextColumn("{task.fields[count]}"), BarColumn(bar_width=20), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("", total=total, completed=done, count="", rate="")

            def update(now: int) -> None:
                count, rate = texts(now)
                bar.update(task, completed=now, count=count, rate=rate)

            yield update
        return

    def print_line(now: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > PLAIN_LINE_SECONDS or now == total:
            shown = time.monotonic()
            left = (total - now) * (shown - start) / max(now - done, 1)
            count, rate = texts(now)
            console.print(f"{count}  {rate}" + (f"  {left / 60:,.1f} min left" if now < total else ""))

    yield print_line
