"""What a case found, and what its child processes left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ALLOWED = (0, 1, 2, 75)


@dataclass
class Outcome:
    """A case: how many tries it made, what each fault was, and what it did, to repeat it by hand."""

    tries: int = 1
    faults: list[str] = field(default_factory=list)
    did: str = ""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    """Exit status; negative if a signal ended it."""
    out: str
    err: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    hung: bool = False
    """It was killed because it took too long."""


def unclean(ended: Ended, *, allowed: Sequence[int] = ALLOWED) -> list[str]:
    """What is wrong with the way a command ended: its status, and what it said."""
    said = [line for line in ended.err.splitlines() if line.strip()]
    told = [line for line in said if not line.startswith(("fastmim: warning: ", "stopping after "))]
    if ended.hung:
        return [f"hang: killed after {ended.seconds:.0f} s; it said {ended.err[-200:]!r}"]
    faults = []
    if "Traceback" in ended.err + ended.out:
        faults.append(f"traceback of {len(said)} lines: {told[-1][:300] if told else ''}")
    elif ended.status == 0 and told:
        faults.append(f"success, but standard error says {told[0][:300]!r}")
    elif ended.status != 0 and len(told) != 1:
        faults.append(f"{len(told)} lines on standard error, not one: {ended.err[-400:]!r}")
    if ended.status not in allowed:
        faults.append(f"exit status {ended.status}, not {' or '.join(map(str, allowed))}: {ended.err[-300:]!r}")
    if raw := {c for c in ended.out + ended.err if (c < " " and c not in "\n\t") or c == "\x7f"}:
        faults.append(f"control characters on the terminal: {sorted(raw)}")
    return faults


def tree(folder: Path) -> dict[str, bytes]:
    """The files of a folder by relative path, with their contents."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
