"""Block masks, and their expansion to cells and pixels. `mask` is bool, True = hidden, everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmim.randomness import uniform

_MASK_STREAM = 1


def default_block(stride: int, img_size: int) -> int:
    """The block side in pixels for a backbone stride.

    The stride itself where it is at least 16 (16 for ViT/16, 32 for hierarchical backbones); else the
    smallest stride * 2^n that is at least an eighth of the image, so that small images with small
    patches keep blocks that cannot be filled in from their neighbours.
    """
    block = stride
    while stride < 16 and block * 8 < img_size:
        block *= 2
    return block


def num_visible(num_blocks: int, ratio: float) -> int:
    """How many of an image's blocks stay visible: int(n * (1 - ratio)), FastMIM section 3.1."""
    # The small constant keeps 64 * (1 - 0.9) at 6, not 5 or 6 by the luck of binary fractions.
    return int(num_blocks * (1 - ratio) + 1e-9)


def random_mask(keys: Tensor, grid: int, ratio: float) -> Tensor:
    """Hide a random share of each image's blocks.

    Args:
        keys: (B,) int64, one per image (`randomness.image_keys`); equal keys give equal masks.
        grid: Blocks along a side.
        ratio: Share of hidden blocks, 0 < ratio < 1.

    Returns:
        (B, grid, grid) bool, True = hidden; every image hides the same number of blocks.
    """
    noise = uniform(keys, grid * grid, stream=_MASK_STREAM)
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1)
    mask = rank >= num_visible(grid * grid, ratio)
    return mask.view(-1, grid, grid)


def expand(mask: Tensor, size: int) -> Tensor:
    """(B, g, g) bool over blocks -> (B, size, size) bool over cells or pixels; size a multiple of g."""
    factor = size // mask.shape[-1]
    return mask.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def paint(images: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """Replace hidden pixels by the mask token (FastMIM section 3.1: masking in pixel space).

    Args:
        images: (B, C, H, W) normalised images.
        mask: (B, g, g) bool, True = hidden.
        mask_token: (C,) learnable, in normalised image space.

    Returns:
        (B, C, H, W).
    """
    hidden = expand(mask, images.shape[-1])[:, None]
    return torch.where(hidden, mask_token.to(images.dtype)[:, None, None], images)


def visible_positions(mask: Tensor, num_visible: int) -> Tensor:
    """Where an encoder that drops hidden tokens looks.

    Args:
        mask: (B, h, w) bool, True = hidden; `num_visible` positions of each image are not.
        num_visible: n.

    Returns:
        (B, n) int64, positions in row-major order, rising.
    """
    return mask.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, :num_visible]
