"""A plot of accuracy against cost."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

# Colour-blind safe (Okabe and Ito, 2008). There is one more shape than colours, so that no pair repeats early.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_SHAPES = "osD^vP*X"
_SCRATCH = "#777777"
_LETTERS = 12
"""Letters of text to an inch."""


def draw(summary: dict[str, Any], path: Path, *, title: str) -> None:
    """Draw a panel for each number of labels: top-1 after fine-tuning against device-seconds, with deviations.

    Args:
        summary: From `results.summarise`.
        path: The PNG or SVG file to write.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    labels = list(next(iter(summary.values()))["top1"])
    # With a fixed salt the same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "fastmim", "font.size": 10}):
        width = max(6.4, 5.0 * len(labels))
        columns = max(1, int(_LETTERS * width / (max(map(len, summary)) + 8)))  # of the legend, each with a sign
        rows = -(-len(summary) // columns)
        figure = Figure(figsize=(width, 4.4 + 0.25 * rows), layout="constrained")
        panels = figure.subplots(1, len(labels), squeeze=False)[0]
        for panel, number in zip(panels, labels, strict=True):
            for index, (name, point) in enumerate(summary.items()):
                scratch = "pretrain" not in point
                cost, top1 = point["total_device_seconds"][number], point["top1"][number]
                panel.errorbar(
                    cost["mean"],
                    top1["mean"],
                    xerr=cost["deviation"],
                    yerr=top1["deviation"],
                    fmt="x" if scratch else _SHAPES[index % len(_SHAPES)],
                    color=_SCRATCH if scratch else _COLOURS[index % len(_COLOURS)],
                    capsize=3,
                    label=name,
                )
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.set_title(f"{int(number):,} labels", fontsize=11)
            panel.set_xlabel("device-seconds, pre-training and fine-tuning")
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("top-1 in %, mean ± standard deviation")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(textwrap.fill(title, int(_LETTERS * width)), fontsize=11)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
