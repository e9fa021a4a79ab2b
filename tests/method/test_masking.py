"""Masks and their random numbers: counts, expansion, and dependence on nothing but the key."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastmim.method import masking
from fastmim.randomness import image_keys, step_seed, uniform


def keys(num: int, epoch: int = 0) -> torch.Tensor:
    return image_keys(7, epoch, torch.arange(num))


@given(rows=st.integers(1, 16), columns=st.integers(1, 16), ratio=st.floats(0.01, 0.99))
def test_each_image_hides_the_same_number_of_blocks(rows: int, columns: int, ratio: float) -> None:
    mask = masking.random_mask(keys(5), (rows, columns), ratio)
    assert mask.dtype == torch.bool
    assert mask.shape == (5, rows, columns)
    visible = int(rows * columns * (1 - ratio) + 1e-9)
    assert (~mask).sum(dim=(1, 2)).tolist() == [visible] * 5


@pytest.mark.parametrize(
    ("blocks", "ratio", "visible"), [(64, 0.75, 16), (16, 0.75, 4), (49, 0.75, 12), (100, 0.9, 10)]
)
def test_num_visible(blocks: int, ratio: float, visible: int) -> None:
    assert masking.num_visible(blocks, ratio) == visible


def test_every_block_is_hidden_equally_often() -> None:
    share = masking.random_mask(keys(20_000), (8, 8), 0.75).float().mean(dim=0)
    assert (share - 0.75).abs().max() < 0.02


def test_a_mask_depends_only_on_its_key() -> None:
    masks = masking.random_mask(keys(6), (4, 4), 0.5)
    assert torch.equal(masks[3:], masking.random_mask(keys(6)[3:], (4, 4), 0.5))
    assert not torch.equal(masks, masking.random_mask(keys(6, epoch=1), (4, 4), 0.5))


@pytest.mark.parametrize("grid", [(2, 8), (16,), (2, 2, 4)])
def test_the_shape_of_the_grid_only_reshapes_the_mask(grid: tuple[int, ...]) -> None:
    square = masking.random_mask(keys(6), (4, 4), 0.5)
    assert torch.equal(masking.random_mask(keys(6), grid, 0.5), square.view(6, *grid))


def test_expand_and_paint() -> None:
    mask = torch.tensor([[[True, False], [False, False]]])
    positions = masking.expand(mask, (4, 4))
    assert positions[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    painted = masking.paint(torch.ones(1, 3, 4, 4), mask, torch.tensor([2.0, 3.0, 4.0]))
    assert painted[0, :, 0, 0].tolist() == [2, 3, 4]
    assert painted[0, :, 3, 3].tolist() == [1, 1, 1]


def test_masks_of_images_that_are_not_square() -> None:
    mask = torch.tensor([[[True, False, False], [False, False, True]]])
    positions = masking.expand(mask, (2, 6))
    assert positions[0].int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]
    painted = masking.paint(torch.zeros(1, 1, 4, 6), mask, torch.ones(1))
    assert torch.equal(painted[:, 0].bool(), masking.expand(mask, (4, 6)))
    assert masking.visible_positions(positions, 8).tolist() == [[2, 3, 4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize(
    ("stride", "size", "block"),
    [(16, 128, 16), (32, 128, 32), (4, 32, 4), (4, 64, 8), (8, 128, 16), (4, 28, 4), (64, 128, 64)],
)
def test_default_block(stride: int, size: int, block: int) -> None:
    assert masking.default_block(stride, size) == block


def test_uniform_numbers_are_uniform_and_independent() -> None:
    numbers = uniform(keys(50_000), 4)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert torch.allclose(numbers.mean(0), torch.full((4,), 0.5), atol=0.01)
    streams = torch.cat([numbers, uniform(keys(50_000), 4, stream=1), uniform(keys(50_000, epoch=1), 4)], dim=1)
    assert (torch.corrcoef(streams.T) - torch.eye(12)).abs().max() < 0.02


def test_keys_and_seeds_do_not_collide() -> None:
    assert len(torch.cat([keys(10_000, epoch=e) for e in range(5)]).unique()) == 50_000
    assert len({step_seed(s, a, b) for s in range(10) for a in range(20) for b in range(20)}) == 4000


def test_splitmix_gives_the_published_sequence() -> None:
    """SplitMix64 from state 0 starts 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4 (the authors' reference code)."""
    from fastmim import randomness

    states = torch.tensor([1, 2]) * randomness._GAMMA
    assert [int(x) % 2**64 for x in randomness._mix(states)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert randomness._mix_int(randomness._GAMMA) == 0xE220A8397B1DCDAF
