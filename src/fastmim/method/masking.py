"""Block masks (FastMIM section 3.1): drawn, expanded to positions or pixels, painted. True = hidden, everywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmim.errors import RequestError
from fastmim.randomness import uniform

_MASK_STREAM = 1


def random_mask(keys: Tensor, grid: tuple[int, ...], ratio: float) -> Tensor:
    """Hide a random share of each image's blocks.

    Args:
        keys: (B,) int64, one per image (`randomness.image_keys`); equal keys give equal masks.
        grid: Blocks along each axis, such as (rows, columns).
        ratio: Share of hidden blocks, 0 < ratio < 1.

    Returns:
        (B, *grid) bool, True = hidden; every image hides the same number of blocks.
    """
    num_blocks = math.prod(grid)
    noise = uniform(keys, num_blocks, stream=_MASK_STREAM)
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1)
    mask = rank >= num_visible(num_blocks, ratio)
    return mask.view(-1, *grid)


def num_visible(num_blocks: int, ratio: float) -> int:
    """The number of an image's blocks that stay visible: int(n * (1 - ratio)), FastMIM section 3.1."""
    # The small constant makes 10 * (1 - 0.9) = 0.9999999999999998 count as 1.
    return int(num_blocks * (1 - ratio) + 1e-9)


def expand(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, *grid) bool over blocks -> (B, *size) bool over positions or pixels; each side a multiple of the grid's."""
    for dim, side in enumerate(size, start=1):
        mask = mask.repeat_interleave(side // mask.shape[dim], dim)
    return mask


def paint(images: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """Replace hidden pixels by the mask token (FastMIM section 3.1: masking in pixel space).

    Args:
        images: (B, C, H, W) normalised images.
        mask: (B, rows, columns) bool over blocks, True = hidden.
        mask_token: (C,) learnable, in normalised image space.

    Returns:
        (B, C, H, W).
    """
    H, W = images.shape[-2:]
    hidden = expand(mask, (H, W))[:, None]
    return torch.where(hidden, mask_token.to(images.dtype)[:, None, None], images)


def visible_positions(mask: Tensor, num_visible: int) -> Tensor:
    """The positions that an encoder sees if hidden tokens are dropped.

    Args:
        mask: (B, h, w) bool, True = hidden.
        num_visible: n, the visible positions of each image.

    Returns:
        (B, n) int64, positions in row-major order, ascending.
    """
    return mask.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, :num_visible]


def default_block(stride: int, img_size: int) -> int:
    """The block side in pixels for a backbone stride.

    The stride itself where it is at least 16 (16 for ViT/16, 32 for hierarchical backbones); otherwise the
    smallest stride * 2^n that is at least an eighth of the image, so that small images with small patches
    keep blocks that cannot be filled in from their neighbours.
    """
    block = stride
    while stride < 16 and block * 8 < img_size:
        block *= 2
    return block


def check_block(block: int, *, img_size: int, stride: int, ratio: float) -> None:
    """Check that blocks tile the image, that positions tile a block, and that something stays visible.

    Raises:
        RequestError: The block, the image size or the ratio does not fit the others.
    """
    if img_size % block:
        low = img_size // block * block
        near = " or ".join(str(size) for size in (low, low + block) if size)
        raise RequestError(
            f"img_size is {img_size}; expected a multiple of the block of {block} pixels: take {near}, or set block"
        )
    if block % stride:
        raise RequestError(f"block is {block}; expected a multiple of the backbone's stride of {stride} pixels")
    num_blocks = (img_size // block) ** 2
    if num_visible(num_blocks, ratio) == 0:
        raise RequestError(
            f"mask_ratio is {ratio}; with {num_blocks} blocks of {block} pixels nothing stays visible: "
            f"lower mask_ratio, or take a smaller block or a larger img_size"
        )
