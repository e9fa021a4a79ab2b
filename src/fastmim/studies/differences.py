"""Differences between a study's points, paired by seed, with 95 % confidence intervals.

Points with the same seed share labels and order, so that their difference varies less than either of them. Besides the
seeds, the validation images are a sample too: with 20 of them, one image more is 5 points.
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

MIN_SEEDS = 3
"""Two seeds agree by chance too often to tell anything."""

NUM_TIES = 10
"""Pairs that are named if they are not told apart, those of the best points first; of the others there is a number."""

Summary = Mapping[str, Mapping[str, Any]]
"""From `results.summarise`, by the point's name."""


def interval(differences: Sequence[float], *, sampling: float = 0.0) -> Interval:
    """Mean and 95 % confidence interval of differences; unbounded for fewer than three.

    Args:
        differences: One for each seed; their spread gives the half-width h by Student's t.
        sampling: The variance that the choice of the validation images adds, from `sampling_variance`. It does not
            shrink with more seeds, which share the images: the half-width is sqrt(h^2 + 1.96^2 * sampling).
    """
    mean = statistics.mean(differences)
    if len(differences) < MIN_SEEDS:
        return mean, -math.inf, math.inf
    with warnings.catch_warnings(action="ignore"):  # scipy warns about differences that are all equal
        found = stats.ttest_1samp(differences, 0).confidence_interval()
    half = math.hypot(float(found.high - found.low) / 2, stats.norm.ppf(0.975) * math.sqrt(sampling))
    return mean, mean - half, mean + half


def sampling_variance(*points: Sequence[float], num_val: int) -> float:
    """The variance of a sum or difference of accuracies, in points squared, that choosing the validation images adds.

    It is the binomial one, as if the points' errors were independent. They are not: points mostly fail on the same
    images, so that differences vary less, and intervals are rather too wide. One right and one wrong image are added
    (Laplace's rule), or else an accuracy of 100 % would be certain.

    Args:
        points: Top-1 of each point in %, by seed.
        num_val: Number of validation images.
    """
    shares = [(statistics.mean(top1) / 100 * num_val + 1) / (num_val + 2) for top1 in points]
    return sum(100**2 * share * (1 - share) / num_val for share in shares)


def between(summary: Summary, labels: str, a: str, b: str, *, num_val: int) -> Interval:
    """Top-1 of a minus top-1 of b, in points, on `num_val` validation images."""
    mine, other = (summary[name]["top1"][labels]["seeds"] for name in (a, b))
    sampling = sampling_variance(mine, other, num_val=num_val)
    return interval([x - y for x, y in zip(mine, other, strict=True)], sampling=sampling)


def words(found: Interval) -> str:
    """A difference as text."""
    mean, low, high = found
    spread = f" ({low:+.2f} to {high:+.2f})" if math.isfinite(low) else " (too few seeds)"
    return f"{mean:+.2f}{spread}"


def pairs(summary: Summary, labels: str, num_val: int) -> dict[tuple[str, str], Interval]:
    """The difference of every pair of points, the better of the two first, best points first."""
    names = sorted(summary, key=lambda name: -summary[name]["top1"][labels]["mean"])
    return {(a, b): between(summary, labels, a, b, num_val=num_val) for a, b in itertools.combinations(names, 2)}


def order(summary: Summary, labels: str, num_val: int) -> str:
    """How many pairs are ordered, as a sentence without its full stop."""
    found = pairs(summary, labels, num_val)
    num_ordered = sum(low > 0 for _, low, _ in found.values())
    return f"With {int(labels):,} labels {num_ordered} of {len(found)} pairs are told apart"


def ties(summary: Summary, labels: str, num_val: int) -> list[str]:
    """The pairs that are not told apart, with their differences."""
    found = pairs(summary, labels, num_val)
    return [f"{a} and {b}, {words(each)}" for (a, b), each in found.items() if not each[1] > 0]


def describe(summary: Summary, labels: str, num_val: int) -> str:
    """`order` and `ties` as a paragraph."""
    tied = ties(summary, labels, num_val)
    named, more = tied[:NUM_TIES], len(tied[NUM_TIES:])
    named += [f"and {more} more"] if more else []
    return f"{order(summary, labels, num_val)}{'; the others: ' if tied else ''}{'; '.join(named)}."
