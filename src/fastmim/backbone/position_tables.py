"""Learned tables over positions, resampled to another input size where timm cannot do it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_MAX_PREFIX = 2  # class and distillation token


def fit_tables(state: Mapping[str, Tensor], model: nn.Module, scale: float) -> dict[str, Tensor]:
    """Resample a state dict's tables to the shapes of `model`, the same architecture for another input size.

    A parameter with one axis, or two adjacent ones, over a square grid is interpolated over that grid (bicubic,
    antialiased, as timm does for ViTs): Hiera's position embedding (1, h * w, D), CaiT's and CrossViT's, PiT's
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
    cells = F.interpolate(cells, (new, new), mode="bicubic", antialias=True, align_corners=False)
    rows = torch.cat([rows[..., :prefix], cells.reshape(*rows.shape[:-1], new * new)], dim=-1)
    return rows.movedim(-1, first).reshape(shape)


def _grids(name: str, old: int, new: int, scale: float) -> tuple[int, int, int]:
    """Prefix, old and new side such that both counts are prefix + side * side and the sides differ by `scale`."""
    for prefix in range(_MAX_PREFIX + 1):
        a, b = math.isqrt(old - prefix), math.isqrt(new - prefix)
        if a * a == old - prefix and b * b == new - prefix and abs(a * scale - b) <= 1:
            return prefix, a, b
    raise ValueError(f"{name} does not run over a square grid")
