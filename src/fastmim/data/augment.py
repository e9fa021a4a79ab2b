"""Crops for training and evaluation on the CPU, flip and normalisation on the device.

All of them are pure functions of the image's key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmim.data.decode import decode_box
from fastmim.data.greys import PLAIN, Decoding
from fastmim.data.pixels import Box
from fastmim.randomness import uniform

CROP_STREAM = 0
_FLIP_STREAM = 2
_NUM_TRIES = 10

NUM_RANDOMS = 2 * _NUM_TRIES + 2
"""Uniform numbers that a random crop takes: area and aspect of each try, then the position."""


def crop_box(
    height: int,
    width: int,
    randoms: Sequence[float],
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw a box with the distribution of torchvision's RandomResizedCrop (Szegedy et al., arXiv 1409.4842).

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        randoms: `NUM_RANDOMS` numbers in [0, 1).
        scale: Range of the box's share of the area, drawn uniformly.
        ratio: Range of width / height, drawn uniformly in the logarithm.

    Returns:
        A box inside the image: the first of ten draws that fits, else the largest central one whose
        aspect is in `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect in zip(randoms[0 : 2 * _NUM_TRIES : 2], randoms[1 : 2 * _NUM_TRIES : 2], strict=True):
        num_pixels = height * width * (scale[0] + area * (scale[1] - scale[0]))
        root = math.exp((low + aspect * (high - low)) / 2)
        box_height, box_width = round(math.sqrt(num_pixels) / root), round(math.sqrt(num_pixels) * root)
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(randoms[-2] * (height - box_height + 1))
            left = int(randoms[-1] * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_height = max(1, min(height, round(width / ratio[0])))
    box_width = max(1, min(width, round(height * ratio[1])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def center_box(height: int, width: int, *, crop_pct: float = 1.0) -> Box:
    """The central square whose side is `crop_pct` of the shorter side."""
    side = max(1, round(min(height, width) * crop_pct))
    return Box((height - side) // 2, (width - side) // 2, side, side)


def decode_crop(
    data: bytes | np.ndarray,
    size: int,
    randoms: Sequence[float],
    decoding: Decoding = PLAIN,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Decode a random crop for training: `crop_box` through `decode.decode_box`.

    Returns:
        (3, size, size) uint8.

    Raises:
        BadImage: The data is not an image, is corrupted, or is too large.
    """
    choose_box = partial(crop_box, randoms=randoms, scale=scale, ratio=ratio)
    return decode_box(data, size, choose_box, decoding)


def decode_center(data: bytes | np.ndarray, size: int, decoding: Decoding = PLAIN, *, crop_pct: float = 1.0) -> Tensor:
    """Decode the crop for evaluation: like resizing the shorter side to size / crop_pct and cropping the centre.

    Returns:
        (3, size, size) uint8.

    Raises:
        BadImage: The data is not an image, is corrupted, or is too large.
    """
    return decode_box(data, size, partial(center_box, crop_pct=crop_pct), decoding)


def prepare(batch: Mapping[str, Any], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Augment on the device: flip half of the images left to right, and normalise.

    Does not synchronise with the device, and compiles without graph breaks.

    Args:
        batch: "images" uint8 (B, C, H, W) and "keys" int64 (B,) on one device, "labels" (B,) if any.
        mean: (C,) float32 on the same device, for pixels in [0, 1].
        std: (C,) float32 likewise.

    Returns:
        "images" float32 (B, C, H, W), and "keys" and "labels" unchanged.
    """
    images, keys = batch["images"], batch["keys"]
    flip = uniform(keys, 1, stream=_FLIP_STREAM) < 0.5  # (B, 1)
    images = torch.where(flip[:, :, None, None], images.flip(-1), images)
    rest = {name: batch[name] for name in ("keys", "labels") if name in batch}
    return {"images": normalise(images, mean, std), **rest}


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (..., C, H, W) -> float32, (pixel / 255 - mean) / std."""
    # In place, because fresh memory costs more than the arithmetic on it.
    return images.to(torch.float32, copy=True).sub_((255 * mean)[:, None, None]).div_((255 * std)[:, None, None])


def denormalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Undo `normalise`: float (..., C, H, W) -> uint8, rounded and clamped to 0 to 255."""
    pixels = (images * std[:, None, None] + mean[:, None, None]) * 255
    return pixels.round().clamp(0, 255).to(torch.uint8)
