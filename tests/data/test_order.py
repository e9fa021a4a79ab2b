"""The order of an epoch: a permutation for any number of images, in bounded memory, as random as a shuffled list."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fastmim.data.order import BLOCK, StepSampler, shuffled
from fastmim.randomness import permuted

SIZES = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 24, 63, 64, 65, 100, 255, 256, 257, 1000, 4095, 4097, 50_000, 65_536, 65_537]


@pytest.mark.parametrize("num", SIZES)
def test_every_number_appears_once(num: int) -> None:
    for seed in (0, 1, 2**62):
        assert sorted(permuted(np.arange(num), num, seed).tolist()) == list(range(num))


@pytest.mark.parametrize("num", [1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 5 * BLOCK + 17])
def test_blocks_are_a_permutation_too(num: int) -> None:
    assert sorted(shuffled(np.arange(num), num, seed=3, shuffle="blocks").tolist()) == list(range(num))


def test_a_batch_of_blocks_comes_from_neighbours() -> None:
    num = 20 * BLOCK + 100
    for start in range(0, num - 256, 9999):
        found = shuffled(np.arange(start, start + 256), num, seed=3, shuffle="blocks")
        assert len(np.unique(found // BLOCK)) <= 2
        assert np.ptp(found) > 256  # and they are mixed


def test_every_place_is_as_likely_for_every_image() -> None:
    """Counts of (image, place) over many seeds, against chi-squared's mean and deviation."""
    num, seeds = 24, 4800
    counts = np.zeros((num, num))
    for seed in range(seeds):
        counts[np.arange(num), permuted(np.arange(num), num, seed * 7919)] += 1
    expected = seeds / num
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = (num - 1) ** 2
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_do_not_stay_neighbours() -> None:
    num = 100_000
    found = permuted(np.arange(num), num, 5)
    assert (np.abs(np.diff(found)) < 100).mean() == pytest.approx(2 * 100 / num, rel=0.25)
    assert abs(np.corrcoef(np.arange(num), found)[0, 1]) < 0.02


def test_the_order_is_pinned() -> None:
    """A change would give every interrupted run another order when it resumes: raise `checkpoint.FORMAT` with it."""
    pairs = [(epoch, indices.tolist()) for epoch, indices in StepSampler(7, 3, 123, 1, 4)]
    assert pairs == PINNED
    blocks = StepSampler(7, 3, 123, 1, 4, shuffle="blocks")
    assert [(epoch, indices.tolist()) for epoch, indices in blocks] == PINNED_BLOCKS


PINNED = [(0, [3, 2, 6]), (1, [3, 0, 2]), (1, [6, 5, 1])]
PINNED_BLOCKS = [(0, [2, 0, 5]), (1, [6, 3, 0]), (1, [5, 2, 1])]


def test_a_part_of_a_batch_is_the_same_for_any_number_of_processes() -> None:
    def parts(world_size: int) -> list[list[int]]:
        ranks = [iter(StepSampler(100, 24, 9, 2, 4, 3, rank, world_size)) for rank in range(world_size)]
        return [np.concatenate([indices for _, indices in part]).tolist() for part in zip(*ranks, strict=True)]

    assert len(parts(1)) == 6
    assert parts(1) == parts(2) == parts(4) == parts(8)


def test_a_billion_images_need_no_memory() -> None:
    num, batch = 10**9, 4096
    tracemalloc.start()
    steps = [indices for _, indices in StepSampler(num, batch, 0, 1000, 1050)]
    blocks = [indices for _, indices in StepSampler(num, batch, 0, 1000, 1010, shuffle="blocks")]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20
    for found in (steps, blocks):
        together = np.concatenate(found)
        assert len(np.unique(together)) == len(together) and together.min() >= 0 and together.max() < num
