"""Learned tables over positions, resampled to another input size: fixed linear maps of their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Grid = tuple[int, int]

_MAX_PREFIX = 2  # class and distillation token
_MAX_RATIO = 3.0  # between the steps of two neighbouring offsets


def list_tables(model: nn.Module) -> dict[str, tuple[Tensor, Grid]]:
    """A model's relative-position tables and position embedding, by name, with the (h, w) of their windows or grid."""
    return {name: (table.detach(), sides) for name, table, sides in _tables(model)}


def resample_tables(model: nn.Module, before: Mapping[str, tuple[Tensor, Grid]]) -> None:
    """Replace a model's tables by those that it had before it was resized, resampled as published.

    Args:
        model: The model, whose tables timm has resampled.
        before: `list_tables` of the model at the old size.
    """
    for name, parameter, sides in _tables(model):
        table, old = before[name]
        if old != sides and not table.is_meta:
            with torch.no_grad():
                resample = resample_embedding if name == "pos_embed" else resample_bias
                parameter.copy_(resample(table, old, sides))


def _tables(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Grid]]:
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            module: Any = model.get_submodule(name.rpartition(".")[0])
            height, width = module.window_size
            yield name, parameter, (height, width)
    table, grid = getattr(model, "pos_embed", None), getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if isinstance(table, nn.Parameter) and table.ndim == 3 and grid:
        yield "pos_embed", table, (grid[0], grid[1])


def resample_embedding(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resample a position embedding to another grid: bicubic, as in the code of DeiT, MAE and FastMIM.

    timm's is antialiased, which for 8 x 8 to 14 x 14 positions gives values 0.8 % apart.

    Args:
        table: (1, n + h * w, D), whose first n rows are of class and other tokens and are kept.
        old: h and w.
        new: The same for the result.
    """
    num_prefix = table.shape[1] - old[0] * old[1]
    cells = table[:, num_prefix:].float().transpose(1, 2).unflatten(2, old)  # (1, D, h, w)
    cells = F.interpolate(cells, new, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    return torch.cat([table[:, :num_prefix], cells.to(table.dtype)], dim=1)


def resample_bias(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resample a table of relative-position biases to windows of another size.

    Geometric, as in SimMIM's and FastMIM's code: near offsets keep their distance in tokens, far ones are stretched, so
    that the outermost offset of one window is that of the other. Between them, cubic splines. A smaller table takes
    the values at the places where its offsets would be stretched to, so growing and shrinking undo each other.

    Args:
        table: ((2 h - 1) (2 w - 1) + n, heads) for windows of h x w, whose last n rows are of other tokens and are
            kept; or (heads, 2 h - 1, 2 w - 1).
        old: h and w.
        new: The same for the result.
    """
    rows, columns = (
        torch.from_numpy(_bias_weights(a, b)).to(table.device, torch.float32) for a, b in zip(old, new, strict=True)
    )
    if table.ndim == 3:
        return (rows @ table.float() @ columns.T).to(table.dtype)
    num_offsets = rows.shape[1] * columns.shape[1]
    planes = table[:num_offsets].float().T.unflatten(1, (rows.shape[1], columns.shape[1]))
    resampled = (rows @ planes @ columns.T).flatten(1).T
    return torch.cat([resampled.to(table.dtype), table[num_offsets:]])


@lru_cache
def _bias_weights(old: int, new: int) -> np.ndarray:
    """(2 * new - 1, 2 * old - 1) matrix that resamples the biases of one axis."""
    if new > old:
        known, wanted = _stretched(old, new), np.arange(1.0 - new, new)
    else:
        known, wanted = np.arange(1.0 - old, old), _stretched(new, old)
    if len(known) == 1:
        return np.ones((len(wanted), 1))
    from scipy.interpolate import make_interp_spline  # takes a third of a second, which most runs are spared

    splines = make_interp_spline(known, np.eye(len(known)), k=1 if len(known) <= 3 else 3)
    weights: np.ndarray = splines(wanted.clip(known[0], known[-1]))
    return weights


def _stretched(small: int, large: int) -> np.ndarray:
    """The places of a window's 2 * small - 1 offsets among those of a larger one: 0, 1, 1 + q, 1 + q + q^2, ...

    q is such that the last is large - 1, but at most 3: 1.79 for windows of 4 and 7.
    """
    powers = np.arange(small - 1)

    def beyond(ratio: float) -> float:
        return float((ratio**powers).sum() - (large - 1))

    from scipy.optimize import brentq

    ratio = brentq(beyond, 1.0, _MAX_RATIO) if beyond(_MAX_RATIO) > 0 else _MAX_RATIO
    places = np.cumsum(ratio**powers)
    return np.concatenate([-places[::-1], [0.0], places])


def fit_tables(state: Mapping[str, Tensor], model: nn.Module, scale: float) -> dict[str, Tensor]:
    """Resample a state dict's tables to the shapes of `model`, the same architecture for another input size.

    A parameter with one axis, or two adjacent ones, over a square grid is interpolated over that grid (bicubic, as
    `resample_embedding`): Hiera's position embedding (1, h * w, D), CaiT's and CrossViT's, PiT's
    (1, D, h, w), VOLO's (1, h, w, D), LeViT's attention biases (heads, h * w). Buffers of another shape depend
    on the size alone and are taken from `model`.

    Args:
        state: The weights for the old size.
        model: The model for the new size.
        scale: New size over old.

    Raises:
        ValueError: a parameter of another shape does not run over a grid, such as a layer over all tokens (MLP-Mixer).
    """
    parameters = dict(model.named_parameters())
    fitted = {}
    for name, wanted in model.state_dict().items():
        table = state[name]
        if table.shape == wanted.shape:
            fitted[name] = table
        elif name not in parameters:
            fitted[name] = wanted
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear | _ConvNd):
            raise ValueError(f"{name} is a layer over all positions")
        else:
            fitted[name] = _interpolate(name, table, wanted.shape, scale)
    return fitted


def _interpolate(name: str, table: Tensor, shape: torch.Size, scale: float) -> Tensor:
    axes = [axis for axis, (old, new) in enumerate(zip(table.shape, shape, strict=True)) if old != new]
    first, last = axes[0], axes[-1]
    rows = table.flatten(first, last).movedim(first, -1)  # (..., prefix + old * old)
    prefix, old, new = _grids(name, rows.shape[-1], math.prod(shape[first : last + 1]), scale)
    if last > first and (last > first + 1 or table.shape[first] != table.shape[last]):
        raise ValueError(f"{name} does not run over one square grid")
    cells = rows[..., prefix:].reshape(1, -1, old, old)
    cells = F.interpolate(cells, (new, new), mode="bicubic", align_corners=False)
    rows = torch.cat([rows[..., :prefix], cells.reshape(*rows.shape[:-1], new * new)], dim=-1)
    return rows.movedim(-1, first).reshape(shape)


def _grids(name: str, old: int, new: int, scale: float) -> tuple[int, int, int]:
    """Prefix, old and new side such that both counts are prefix + side * side and the sides differ by `scale`."""
    for prefix in range(_MAX_PREFIX + 1):
        a, b = math.isqrt(old - prefix), math.isqrt(new - prefix)
        if a * a == old - prefix and b * b == new - prefix and abs(a * scale - b) <= 1:
            return prefix, a, b
    raise ValueError(f"{name} does not run over a square grid")
