"""Which differences between a study's points its seeds support: paired by seed, with 95 % intervals.

Points with the same seed share labels and order, so that their difference varies less than each of them.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student

Interval = tuple[float, float, float]
"""Mean, and the ends of its 95 % interval."""

Summary = Mapping[str, Mapping[str, Any]]
"""By the point's name, from `report.summarise`."""


def interval(differences: Sequence[float]) -> Interval:
    """Mean and 95 % interval of differences (Student's t); infinitely wide from one seed."""
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return mean, -math.inf, math.inf
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    width = float(student.ppf(0.975, len(differences) - 1)) * error
    return mean, mean - width, mean + width


def between(summary: Summary, labels: str, a: str, b: str) -> Interval:
    """Points of top-1 that a has more than b."""
    mine, other = (summary[name]["top1"][labels]["seeds"] for name in (a, b))
    return interval([x - y for x, y in zip(mine, other, strict=True)])


def words(found: Interval) -> str:
    """A difference for the reader."""
    mean, low, high = found
    spread = f" ({low:+.2f} to {high:+.2f})" if math.isfinite(low) else " (one seed)"
    return f"{mean:+.2f}{spread}"


def pairs(summary: Summary, labels: str) -> dict[tuple[str, str], Interval]:
    """Every pair of points, the better mean first, from the best down."""
    names = sorted(summary, key=lambda name: -summary[name]["top1"][labels]["mean"])
    return {(a, b): between(summary, labels, a, b) for a, b in itertools.combinations(names, 2)}


def order(summary: Summary, labels: str) -> str:
    """How many pairs the seeds order, in a sentence without its end."""
    found = pairs(summary, labels)
    num_ordered = sum(low > 0 for _, low, _ in found.values())
    return f"With {int(labels):,} labels the seeds order {num_ordered} of {len(found)} pairs"


def ties(summary: Summary, labels: str) -> list[str]:
    """The pairs that the seeds do not tell apart, with their differences."""
    return [f"{a} and {b}, {words(found)}" for (a, b), found in pairs(summary, labels).items() if not found[1] > 0]


def describe(summary: Summary, labels: str) -> str:
    """Both as a paragraph."""
    tied = ties(summary, labels)
    return f"{order(summary, labels)}{'; not told apart: ' if tied else ''}{'; '.join(tied)}."
