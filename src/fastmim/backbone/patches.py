"""Convolutions over patches that do not overlap, as one matrix product each: the same values in less time."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


def multiply_patches(model: nn.Module) -> None:
    """Compute the convolutions of a model whose stride is their kernel as matrix products, from now on.

    These are the patch embeddings of ViTs and Swin and the downsampling of ConvNeXt. As convolutions, a ViT's backward
    pass takes several times as long on a CPU (benchmarks/operations.py).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_disjoint(module):
            module.forward = partial(_multiply, module)  # type: ignore[method-assign]


def visible_patches(proj: nn.Conv2d, images: Tensor, visible: Tensor) -> Tensor:
    """Embed the visible patches only.

    Args:
        proj: The patch embedding's convolution, whose stride is its kernel.
        images: (B, C, H, W).
        visible: (B, n) int64, the patches' positions in row-major order.

    Returns:
        (B, n, D).
    """
    rows = _rows(images, *_kernel(proj)).flatten(1, 2)  # (B, N, C * p * p)
    return F.linear(
        rows.gather(1, visible[..., None].expand(-1, -1, rows.shape[-1])), proj.weight.flatten(1), proj.bias
    )


def _is_disjoint(conv: nn.Conv2d) -> bool:
    plain = conv.padding in ((0, 0), "valid") and conv.dilation == (1, 1) and conv.groups == 1
    return plain and conv.kernel_size == conv.stride != (1, 1)


def _kernel(conv: nn.Conv2d) -> tuple[int, int]:
    rows, columns = conv.kernel_size
    return rows, columns


def _multiply(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, D, H / p, W / p) with channels last in memory; what is left at the edges is not used."""
    if x.shape[1] > 4 and x.stride(1) == 1:  # a map with channels last: rows are made of runs of channels
        rows, weight = _rows_of_channels(x, *_kernel(conv)), conv.weight.permute(0, 2, 3, 1)
    else:
        rows, weight = _rows(x, *_kernel(conv)), conv.weight
    return F.linear(rows, weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _rows(x: Tensor, p: int, q: int) -> Tensor:
    """(B, C, H, W) -> (B, H / p, W / q, C * p * q), a row for each patch."""
    h, w = x.shape[2] // p, x.shape[3] // q
    patches = x[:, :, : h * p, : w * q].unflatten(2, (h, p)).unflatten(4, (w, q))  # (B, C, h, p, w, q)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3)


def _rows_of_channels(x: Tensor, p: int, q: int) -> Tensor:
    """(B, C, H, W) -> (B, H / p, W / q, p * q * C)."""
    h, w = x.shape[2] // p, x.shape[3] // q
    patches = x[:, :, : h * p, : w * q].permute(0, 2, 3, 1).unflatten(1, (h, p)).unflatten(3, (w, q))
    return patches.permute(0, 1, 3, 2, 4, 5).flatten(3)
