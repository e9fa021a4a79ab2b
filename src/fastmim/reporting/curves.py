"""Curves: thinned without losing extremes, smoothed, and the ticks of their axes."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

MAX_BINS = 300
"""Parts of a curve, of each of which the first, last, smallest and largest values are drawn."""


def thin(steps: np.ndarray, values: np.ndarray, *, bins: int = MAX_BINS) -> tuple[np.ndarray, np.ndarray]:
    """Keep of each of `bins` equal parts of the steps the first, last, smallest and largest value.

    Args:
        steps: (N,) increasing.
        values: (N,), finite.
        bins: Parts; a curve of up to four points a part is returned as it is.

    Returns:
        Steps and values of the points that are left, at most four times `bins`.
    """
    if len(steps) <= 4 * bins:
        return steps, values
    edges = np.searchsorted(steps, np.linspace(steps[0], steps[-1], bins + 1)[:-1])
    edges = np.unique(np.append(edges, len(steps)))
    kept: set[int] = set()
    for start, stop in pairwise(edges):
        part = values[start:stop]
        kept |= {int(start), int(stop) - 1, int(start + part.argmin()), int(start + part.argmax())}
    index = np.array(sorted(kept))
    return steps[index], values[index]


def smooth(steps: np.ndarray, values: np.ndarray, *, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each of `bins` equal parts of the points, at their mean step; few points are returned as they are."""
    if len(steps) <= 2 * bins:
        return steps, values
    edges = np.linspace(0, len(steps), bins + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(steps)))
    return np.add.reduceat(steps, edges) / counts, np.add.reduceat(values, edges) / counts


def ticks(low: float, high: float, *, most: int = 4) -> list[float]:
    """Round numbers between two bounds, at most `most` of them and at least one if the bounds differ."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    exponent = math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        width = factor * 10.0**exponent
        first, last = math.ceil(low / width - 1e-9), math.floor(high / width + 1e-9)
        if last - first + 1 <= most:
            # From whole numbers, so that 3 * 0.1 is 0.3.
            return [float(f"{number * width:.12g}") for number in range(first, last + 1)]
    return []


def log_ticks(low: float, high: float, *, most: int = 4) -> list[float]:
    """Powers of ten between two positive bounds, thinned to `most`."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = list(range(first, last + 1))
    return [10.0**power for power in powers[:: max(1, -(-len(powers) // most))]]


def short(value: float) -> str:
    """A number as an axis shows it: 0.25, 1,500, 20k, 3M, 2e-05."""
    size = abs(value)
    if value == 0:
        return "0"
    if size < 0.001:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            unit = 1e3 if suffix == "k" else limit
            return f"{value / unit:.4g}{suffix}"
    return f"{value:,.4g}" if size < 1000 else f"{value:,.0f}"
