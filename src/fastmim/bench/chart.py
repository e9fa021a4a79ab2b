"""A bar chart of records: a panel for each record, a ratio on every bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.bench import tables
from fastmim.bench.markdown import number
from fastmim.bench.records import Record
from fastmim.errors import RequestError

GREY, BLUE, LIGHT = "#9aa0a6", "#1a5fb4", "#7fb0e6"

_CHARACTER = 0.0115
"""Width of a character of a note, as a share of the panel's width."""


@dataclass(frozen=True)
class Bar:
    """A labelled bar with a note at its end."""

    label: str
    value: float
    note: str
    color: str
    group: str = ""
    """The heading above the bar, if it is the first of a group."""


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw the records as a PNG file.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError("no chart: matplotlib is not installed; run: pip install 'fastmim[plots]'") from None
    panels = [panel(record) for record in records]
    heights = [positions(bars)[-1] + 2.4 for _, _, bars in panels]
    figure = Figure(figsize=(9.5, 0.27 * sum(heights) + 0.3), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for ax, (title, unit, bars) in zip(axes, panels, strict=True):
        _draw_panel(ax, f"{title}, {unit}", bars)
    where = "; ".join(dict.fromkeys(map(tables.where, records)))
    axes[-1].set_xlabel(where, fontsize=7, color="0.4", loc="right")
    figure.savefig(path, dpi=150)


def panel(record: Record) -> tuple[str, str, list[Bar]]:
    """The title, unit and bars of a record's panel."""
    summary, title, unit = record["summary"], tables.table(record).title, tables.clock(record)
    if "cases" in summary:
        return title, unit, _step_bars(summary["cases"])
    if "tiers" in summary:
        return title, "images/s", [_tier_bar(name, numbers) for name, numbers in summary["tiers"].items()]
    rows = summary.get("pipelines") or summary["forms"]
    return title, unit, [_compared(name, numbers, BLUE) for name, numbers in rows.items()]


def _step_bars(cases: dict[str, Any]) -> list[Bar]:
    bars = []
    for case, found in cases.items():
        for place, (form, numbers) in enumerate(found["forms"].items()):
            color = BLUE if form == found["fastmim"] else LIGHT
            bars.append(_compared(form, numbers, color, group=case if place == 0 else ""))
    return bars


def _compared(label: str, numbers: dict[str, Any], color: str, *, group: str = "") -> Bar:
    """A bar with its ratio; grey for what others are compared with."""
    ratio = numbers.get("times_faster")
    if tables.is_baseline(ratio):
        return Bar(label, tables.rate(numbers), "", GREY, group)
    note = f"{ratio['median']:.2f} x" if ratio else f"{numbers['share_of_peak']:.0%} of the peak"
    return Bar(label, tables.rate(numbers), note, color, group)


def _tier_bar(name: str, numbers: dict[str, Any]) -> Bar:
    color = BLUE if name == "folder" or name.endswith("pack") else GREY
    return Bar(name, numbers["images_per_s"], f"{numbers['data_wait_share']:.0%} of the time waiting for data", color)


def positions(bars: Sequence[Bar]) -> list[float]:
    """The bars' positions from the top, with room above each group for its heading."""
    found, place = [], 0.0
    for bar in bars:
        place += 1.3 if bar.group else 0
        found.append(place)
        place += 1
    return found


def _draw_panel(ax: Any, title: str, bars: Sequence[Bar]) -> None:
    at = positions(bars)
    ax.barh(at, [bar.value for bar in bars], color=[bar.color for bar in bars], height=0.76)
    ax.set_yticks(at, [bar.label for bar in bars], fontsize=8)
    limit = 0.0
    for place, bar in zip(at, bars, strict=True):
        text = f" {number(bar.value)}" + (f"   {bar.note}" if bar.note else "")
        ax.text(bar.value, place, text, va="center", fontsize=8)
        limit = max(limit, bar.value / (1 - _CHARACTER * len(text)))
        if bar.group:
            ax.text(0, place - 0.95, f" {bar.group}", va="center", fontsize=8, style="italic")
    ax.set_xlim(0, limit)
    ax.set_ylim(at[-1] + 0.6, -0.6)
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    ax.tick_params(axis="both", length=0)
    ax.set_xticks([])
    for side in ("top", "right", "bottom"):
        ax.spines[side].set_visible(False)
