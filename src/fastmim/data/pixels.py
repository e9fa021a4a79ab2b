"""Pixels of Pillow images of any mode, as uint8 arrays, without a second copy of the whole image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

_TILE = 1 << 20  # pixels that are converted at a time


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


def to_array(image: Image.Image, box: Box | None = None) -> np.ndarray:
    """Convert a box of a loaded image, by default all of it, to 8 bits.

    Palettes, CMYK and the like become RGB; transparency is composited on white; 16-bit greys are scaled by 1/256,
    32-bit and float greys from the range of the whole image, so that a pixel's value does not depend on the box.

    Returns:
        uint8 (h, w) if the image is grey and opaque, else (h, w, 3).
    """
    box = box or Box(0, 0, image.height, image.width)
    scale = _scaling(image)
    converted: np.ndarray | None = None
    for tile in _tiles(box):
        part = _crop(image, tile)
        pixels = np.asarray(_to_rgb(Image.fromarray(scale(np.asarray(part))) if scale else part))
        if converted is None:
            converted = np.empty((box.height, box.width, *pixels.shape[2:]), dtype=np.uint8)
        top, left = tile.top - box.top, tile.left - box.left
        converted[top : top + tile.height, left : left + tile.width] = pixels
    assert converted is not None
    return converted


def _tiles(box: Box) -> Iterator[Box]:
    """Cut a box into boxes of at most `_TILE` pixels."""
    width = min(box.width, _TILE)
    height = _TILE // width
    for top in range(box.top, box.top + box.height, height):
        for left in range(box.left, box.left + box.width, width):
            yield Box(top, left, min(height, box.top + box.height - top), min(width, box.left + box.width - left))


def _crop(image: Image.Image, box: Box) -> Image.Image:
    return image.crop((box.left, box.top, box.left + box.width, box.top + box.height))


def _to_rgb(image: Image.Image) -> Image.Image:
    """An image of any 8-bit mode as "RGB", or as "L" if it is grey and opaque."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _scaling(image: Image.Image) -> Callable[[np.ndarray], np.ndarray] | None:
    """What scales greys of more than 8 bits to uint8; None for other modes. Pillow's own conversion clips to white."""
    if image.mode[0] not in "IF":
        return None
    # Some formats and Pillow releases open 16 bits as "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return lambda values: (values >> 8).astype(np.uint8)
    # 32-bit integers and floats have no agreed white.
    whole = Box(0, 0, image.height, image.width)
    parts = (_finite(np.asarray(_crop(image, tile))) for tile in _tiles(whole))
    lows, highs = zip(*((float(part.min()), float(part.max())) for part in parts), strict=True)
    low, factor = min(lows), 255 / max(max(highs) - min(lows), 1e-12)
    return lambda values: np.rint((_finite(values).astype(np.float64) - low) * factor).astype(np.uint8)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values, posinf=0.0, neginf=0.0)
