"""What the console shows of names and messages: all of it, and no commands to the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from fastmim.bench.markdown import Table
from fastmim.system.display import say


def test_say_prints_what_looks_like_markup() -> None:
    output = io.StringIO()
    say(Console(file=output, width=10), "[/red] [bold]x :smile: runs/a/long/path \x1b[2J\r\nnext line")
    assert output.getvalue() == "[/red] [bold]x :smile: runs/a/long/path \\x1b[2J\\r\nnext line\n"


def test_a_table_prints_what_looks_like_markup() -> None:
    output = io.StringIO()
    Table("", ["data", "[bold]"], [["[/red]", "\x1b[2J"]]).print(Console(file=output), width=40)
    for shown in ("[bold]", "[/red]", r"\x1b[2J"):
        assert shown in output.getvalue()
