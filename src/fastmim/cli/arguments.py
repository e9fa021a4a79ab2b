"""What was given on the command line, as against what is merely a default, and how commands end."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection

from fastmim import config as configs
from fastmim.errors import STOPPED

# Names of the settings that were given on the command line, noted while cyclopts binds the arguments.
_given: set[str] = set()


def note_given(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Note which settings the user typed; a part of the app's `config`."""
    _given.clear()
    _given.update(
        argument.name.removeprefix("--").partition(".")[0].replace("-", "_")
        for argument in arguments
        if argument.tokens
    )


def asked_for(settings: Any, file: Path | None) -> dict[str, Any]:
    """What was asked for, by file and by flag, and nothing that is merely a default."""
    names = {f.name for f in dataclasses.fields(settings)} & _given if settings else ()
    flags = {name: getattr(settings, name) for name in names}
    return (configs.read(file) if file else {}) | flags


def stopped(what: str, *, overwrite: bool = False) -> int:
    """Say that a signal stopped a command, which may have begun anew, after it had saved; the exit status."""
    again = "the same command without --overwrite" if overwrite else "the same command"
    print(f"stopped and saved {what}; run {again} to resume", file=sys.stderr)
    return STOPPED
