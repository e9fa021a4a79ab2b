"""Pixels of Pillow images of any mode, as uint8 arrays, without a second copy of the whole image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastmim.data.greys import Decoding, check_levels, is_deep, to_8_bits

_TILE = 1 << 20  # pixels that are converted at a time


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


def to_array(image: Image.Image, decoding: Decoding, box: Box | None = None) -> np.ndarray:
    """Convert a box of a loaded image, by default all of it, to 8 bits.

    Palettes, CMYK and the like become RGB; transparency is composited on white; greys of more than 8 bits are mapped
    by the levels that their source has (`greys`).

    Returns:
        uint8 (h, w) if the image is grey and opaque, else (h, w, 3).

    Raises:
        BadImage: it has greys of more than 8 bits, and its source has no levels for them.
    """
    box = box or Box(0, 0, image.height, image.width)
    levels = check_levels(image, decoding.levels) if is_deep(image) else None
    converted: np.ndarray | None = None
    for tile in _tiles(box):
        part = _crop(image, tile)
        pixels = to_8_bits(np.asarray(part), levels) if levels else np.asarray(_to_rgb(part))
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
