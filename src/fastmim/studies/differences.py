"""Differences between a study's points, paired by seed, with 95 % confidence intervals.

Points with the same seed share labels and order, so that their difference varies less than either of them.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

Interval = tuple[float, float, float]
"""Mean, lower and upper end of its 95 % confidence interval."""

Summary = Mapping[str, Mapping[str, Any]]
"""From `results.summarise`, by the point's name."""


def interval(differences: Sequence[float]) -> Interval:
    """Mean and 95 % confidence interval (Student's t) of differences; unbounded for a single one."""
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return mean, -math.inf, math.inf
    with warnings.catch_warnings(action="ignore"):  # scipy warns about differences that are all equal
        found = stats.ttest_1samp(differences, 0).confidence_interval()
    return mean, float(found.low), float(found.high)


def between(summary: Summary, labels: str, a: str, b: str) -> Interval:
    """Top-1 of a minus top-1 of b, in points."""
    mine, other = (summary[name]["top1"][labels]["seeds"] for name in (a, b))
    return interval([x - y for x, y in zip(mine, other, strict=True)])


def words(found: Interval) -> str:
    """A difference as text."""
    mean, low, high = found
    spread = f" ({low:+.2f} to {high:+.2f})" if math.isfinite(low) else " (one seed)"
    return f"{mean:+.2f}{spread}"


def pairs(summary: Summary, labels: str) -> dict[tuple[str, str], Interval]:
    """The difference of every pair of points, the better of the two first, best points first."""
    names = sorted(summary, key=lambda name: -summary[name]["top1"][labels]["mean"])
    return {(a, b): between(summary, labels, a, b) for a, b in itertools.combinations(names, 2)}


def order(summary: Summary, labels: str) -> str:
    """How many pairs the seeds order, as a sentence without its full stop."""
    found = pairs(summary, labels)
    num_ordered = sum(low > 0 for _, low, _ in found.values())
    return f"With {int(labels):,} labels the seeds order {num_ordered} of {len(found)} pairs"


def ties(summary: Summary, labels: str) -> list[str]:
    """The pairs that the seeds do not order, with their differences."""
    return [f"{a} and {b}, {words(found)}" for (a, b), found in pairs(summary, labels).items() if not found[1] > 0]


def describe(summary: Summary, labels: str) -> str:
    """`order` and `ties` as a paragraph."""
    tied = ties(summary, labels)
    return f"{order(summary, labels)}{'; not told apart: ' if tied else ''}{'; '.join(tied)}."
