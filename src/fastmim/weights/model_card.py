"""The model card of an export: what the network is, what it learned from, and under which licences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmim.system.text import printable
from fastmim.weights.licences import Origin

_YOURS = "a network of one's own"


def model_card(facts: Mapping[str, Any], *, load: str, library: str = "timm") -> str:
    """The text of a README.md in the Hub's format.

    Args:
        facts: Metadata of the weights.
        load: Python code that loads them.
        library: The Hub's name of the library that this code uses.
    """
    name, classes = printable(str(facts["architecture"])), facts.get("classes")
    task = "image-classification" if classes else "image-feature-extraction"
    kind = f"a classifier of {len(classes)} classes" if classes else "a backbone without a classifier"
    lines = [
        "---",
        f"library_name: {library}",
        f"pipeline_tag: {task}",
        f"tags: [{library}, fastmim]",
        "---",
        f"# {name}",
        "",
        f"{kind.capitalize()}, trained with fastmim {facts['fastmim']} at {facts['img_size']} pixels.",
        "",
        "```python",
        load,
        "```",
        "",
        "## What it learned from",
        "",
    ]
    learned_from: list[Origin] = facts.get("learned_from", [])
    if not learned_from:
        return "\n".join([*lines, "No other network: it started untrained, and had no teacher.", ""])
    lines += ["| role | network | licence |", "|---|---|---|"]
    for origin in learned_from:
        whole = ".".join(filter(None, (origin["name"], origin["tag"])))
        cells = (origin["as"], whole, origin["licence"] or _YOURS)
        lines.append(f"| {' | '.join(printable(cell).replace('|', ' ') for cell in cells)} |")
    return "\n".join([*lines, "", "Check these licences before you publish this network.", ""])
