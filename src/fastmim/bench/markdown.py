"""Tables of text and numbers, for the console and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fastmim.system.text import printable


@dataclass(frozen=True)
class Table:
    """A title, a header, rows of cells and a note below them."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def rich(self) -> RichTable:
        """The table for the console; cells are folded before names are."""
        table = RichTable(
            title=self.title or None, caption=self.note or None, title_justify="left", caption_justify="left"
        )
        for number, name in enumerate(self.header):
            table.add_column(
                Text(printable(name)), justify="right" if number else "left", overflow="fold", no_wrap=not number
            )
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        return table

    def print(self, console: Console, *, width: int) -> None:
        """Print it, in `width` columns where the output is no terminal and has no width of its own."""
        found = console.width
        if not console.is_terminal:
            console.width = max(found, width)  # rich takes the smaller of the console's and a given one
        console.print(self.rich())
        console.width = found

    def markdown(self) -> str:
        """A section: heading, table, note."""
        return f"### {self.title}\n\n{markdown(self.header, self.rows)}\n\n{self.note}\n"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_text: int = 1) -> str:
    """A Markdown table; `num_text` columns of text are aligned left, the numbers after them right."""
    num_right = len(header) - num_text
    lines = [_line(header), f"|{'---|' * num_text}{'---:|' * num_right}", *map(_line, rows)]
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three significant digits without an exponent; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
