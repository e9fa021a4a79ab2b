"""What reaches a terminal: visible characters, never commands to it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fastmim.system.display import printable, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Übung 圖片 a b", "Übung 圖片 a b"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\tb\rc\x9bd", r"a\tb\rc\x9bd"),
        ("not UTF-8: \udce9", r"not UTF-8: \udce9"),
        ("right to left: \u202egpj", r"right to left: \u202egpj"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_say_prints_what_looks_like_markup() -> None:
    console = Console(file=io.StringIO(), width=10)
    say(console, "[/red] [bold]x :smile: runs/a/long/path \x1b[2J")
    assert console.file.getvalue() == "[/red] [bold]x :smile: runs/a/long/path \\x1b[2J\n"  # type: ignore[attr-defined]
