"""Relative-position tables at another window size, against the published resampling written anew with SciPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from fastmim.backbone import Backbone

SWIN = {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
GROWING = [(128, 4, 224, 7), (192, 6, 224, 7), (224, 7, 384, 12)]  # image sizes and the windows that go with them


def swin(size: int, table: Callable[[Tensor, Tensor], Tensor] | None = None) -> Backbone:
    """A Swin whose first head has biases that are a function of the offset as a share of the window, or random ones."""
    torch.manual_seed(0)
    backbone = Backbone("swin_tiny_patch4_window7_224", img_size=size, args=SWIN)
    rows = first_table(backbone)
    side = round(len(rows) ** 0.5)
    shares = torch.linspace(-1, 1, side)
    values = table(shares[:, None], shares[None]) if table else torch.randn(side, side)
    with torch.no_grad():
        rows[:, 0] = values.flatten()
    return backbone


def first_table(backbone: Backbone) -> Tensor:
    table: Tensor = backbone.model.get_parameter("layers.0.blocks.0.attn.relative_position_bias_table")
    return table


def peak(y: Tensor, x: Tensor) -> Tensor:
    """What trained tables look like: high for near offsets, falling off smoothly."""
    return torch.exp(-2 * (y**2 + x**2)) + 0.3 * y * x + 0.1 * x


def published(table: np.ndarray, new: int) -> np.ndarray:
    """The offsets 0, 1, 1 + q, ... of the old window, q from 0.5 to 2, reach the new one's last; cubic in between."""
    half, last = len(table) // 2, new - 1
    low, high = 0.5, 2.0
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if sum(ratio**n for n in range(half)) > last else (ratio, high)
    places = [sum(ratio**n for n in range(count)) for count in range(1, half + 1)]
    places = [-place for place in reversed(places)] + [0, *places]
    offsets = np.arange(-last, last + 1)
    return RectBivariateSpline(places, places, table, kx=3, ky=3, s=0)(offsets, offsets)


@pytest.mark.parametrize("table", [peak, None])
@pytest.mark.parametrize(("size", "window", "larger", "new"), GROWING)
def test_growing_windows_as_published(
    size: int, window: int, larger: int, new: int, table: Callable[[Tensor, Tensor], Tensor] | None
) -> None:
    backbone = swin(size, table)
    before = first_table(backbone).detach().numpy()[:, 0].reshape(2 * window - 1, -1)
    backbone.set_input_size(larger)
    after = first_table(backbone).detach().numpy()[:, 0].reshape(2 * new - 1, -1)
    expected = published(before, new)
    assert np.linalg.norm(after - expected) < 1e-4 * np.linalg.norm(expected)
    # The corners are those of the old table: no outer offset is held constant or cut off.
    np.testing.assert_allclose(
        after[:: 2 * new - 2, :: 2 * new - 2], before[:: 2 * window - 2, :: 2 * window - 2], 1e-4
    )


@pytest.mark.parametrize(("size", "window", "larger", "new"), GROWING)
def test_there_and_back(size: int, window: int, larger: int, new: int) -> None:
    backbone = swin(size, peak)
    before = first_table(backbone).detach()[:, 0].clone()
    backbone.set_input_size(larger)
    backbone.set_input_size(size)
    after = first_table(backbone).detach()[:, 0]
    assert (after - before).norm() < 0.01 * before.norm()

    backbone = swin(larger, peak)
    before = first_table(backbone).detach()[:, 0].clone()
    backbone.set_input_size(size)
    backbone.set_input_size(larger)
    after = first_table(backbone).detach()[:, 0]
    assert (after - before).norm() < 0.02 * before.norm()


def test_windows_of_few_offsets_and_rows_of_other_tokens() -> None:
    """Windows of one and two tokens are too small for cubics; BEiT's last three rows are those of its class token."""
    backbone = swin(32)
    before = first_table(backbone).detach().clone()
    assert len(before) == 1
    backbone.set_input_size(64)
    assert torch.equal(first_table(backbone), before.expand(9, -1))
    backbone.set_input_size(128)
    assert torch.allclose(first_table(backbone), before.expand(49, -1))

    arguments = {"depth": 1, "embed_dim": 64, "num_heads": 2}
    beit = Backbone("beit_base_patch16_224", img_size=64, args=arguments)
    table = beit.model.get_parameter("blocks.0.attn.relative_position_bias_table").data.normal_()
    beit.set_input_size(128)
    grown = beit.model.get_parameter("blocks.0.attn.relative_position_bias_table").detach()
    assert grown.shape == (15 * 15 + 3, 2) and torch.equal(grown[-3:], table[-3:])
    centre = grown[:-3].view(15, 15, 2)[6:9, 6:9]
    torch.testing.assert_close(centre, table[:-3].view(7, 7, 2)[2:5, 2:5], rtol=1e-4, atol=1e-5)
