"""Text for a terminal: control characters escaped, no markup."""

from __future__ import annotations

from rich.console import Console


def printable(text: str) -> str:
    r"""Escape what is not a visible character, a space or a line break, as Python does: ESC becomes `\x1b`.

    Names and messages come from files that anyone may have made, and escape sequences in them would reach the
    terminal.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def say(console: Console, text: str) -> None:
    """Print lines as they are: nothing is wrapped, and [brackets] and :colons: mean nothing."""
    console.print(printable(text), soft_wrap=True, markup=False, emoji=False)
