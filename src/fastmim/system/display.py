"""Lines for the console, as they are."""

from __future__ import annotations

from rich.console import Console

from fastmim.system.text import printable


def say(console: Console, text: str) -> None:
    """Print lines, each `printable`: nothing is wrapped, and [brackets] and :colons: mean nothing."""
    console.print("\n".join(map(printable, text.split("\n"))), soft_wrap=True, markup=False, emoji=False)
