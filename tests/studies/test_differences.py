"""What tells two points of a study apart: their seeds, and the number of validation images."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fastmim.studies import differences
from fastmim.studies.differences import interval, sampling_variance


def summary(**points: list[float]) -> dict[str, Any]:
    return {name: {"top1": {"20": {"mean": statistics.mean(seeds), "seeds": seeds}}} for name, seeds in points.items()}


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_two_seeds_tell_nothing_however_well_they_agree(num_seeds: int) -> None:
    assert interval([5.0] * num_seeds, sampling=0.1) == (5.0, -math.inf, math.inf)


def test_one_image_of_twenty_is_no_difference() -> None:
    """Three seeds that agree exactly, on 20 or 23 images, and on as many as 2,000."""
    for num_val in (20, 23):
        better, worse = [100.0] * 3, [100.0 - 100 / num_val] * 3
        found = summary(hog=worse, scratch=better)
        assert differences.order(found, "20", num_val) == "With 20 labels 0 of 1 pairs are told apart"
        [tied] = differences.ties(found, "20", num_val)
        assert tied.startswith(f"scratch and hog, +{100 / num_val:.2f} (-")
    assert "1 of 1 pairs are told apart." in differences.describe(found, "20", 2000)


def test_of_many_ties_the_best_points_are_named() -> None:
    found = summary(**{f"point{number}": [50.0 + number / 100] * 3 for number in range(6)})
    words = differences.describe(found, "20", 20)
    assert words.count(" and point") == differences.NUM_TIES and words.endswith("; and 5 more.")
    assert "the others: point5 and point4, +0.01" in words and "point1 and point0" not in words


def test_the_interval_combines_seeds_and_images() -> None:
    seeds = [2.0, 3.0, 5.0]
    by_seeds = stats.t.interval(0.95, 2, np.mean(seeds), stats.sem(seeds))
    mean, low, high = interval(seeds)
    assert (mean, low, high) == pytest.approx((10 / 3, *by_seeds))
    _, wider, _ = interval(seeds, sampling=4.0)
    assert mean - wider == pytest.approx(math.sqrt((mean - low) ** 2 + (1.959964 * 2) ** 2))


def test_the_sampling_variance_is_that_of_draws() -> None:
    """Against simulated validation sets, on which two points err independently."""
    generator = np.random.default_rng(0)
    right = generator.random((2, 20_000, 50)) < np.array([0.8, 0.6])[:, None, None]
    drawn = 100 * (right[0].mean(axis=1) - right[1].mean(axis=1))
    assert sampling_variance([80.0] * 3, [60.0] * 3, num_val=50) == pytest.approx(drawn.var(), rel=0.05)
    assert sampling_variance([100.0], num_val=20) == pytest.approx(1e4 * (21 / 22) * (1 / 22) / 20)
