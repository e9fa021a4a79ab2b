"""Greys of more than 8 bits: the range that all images of a source share, and its map to 0 to 255."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from fastmim.data.settings import MAX_PIXELS
from fastmim.data.unreadable import BadImage


@dataclass(frozen=True)
class Decoding:
    """How the images of a source are decoded."""

    levels: tuple[float, float] | None = None
    """The greys that become 0 and 255 in images of more than 8 bits; None if a source has no such images."""
    max_pixels: int = MAX_PIXELS
    """Larger images are unreadable."""

    @property
    def range(self) -> str:
        """The levels as the setting `range` has them."""
        return "8bit" if self.levels is None else ":".join(f"{level:.17g}" for level in self.levels)


PLAIN = Decoding()
"""For images of 8 bits."""


def is_deep(image: Image.Image) -> bool:
    """Whether a Pillow image holds greys of more than 8 bits. Of such colours Pillow itself keeps the upper 8 bits."""
    return image.mode[0] in "IF"


def check_levels(image: Image.Image, levels: tuple[float, float] | None) -> tuple[float, float]:
    """The levels of a loaded image of more than 8 bits, of which none are known if a source has no such images.

    Raises:
        BadImage: none are known, and 8 bits do not hold its values.
    """
    if levels is not None:
        return levels
    low, high = image.getextrema()
    if not 0 <= low <= high <= 255:  # type: ignore[operator]
        raise BadImage(
            f"its greys run from {low:g} to {high:g}, and the images looked at have 8 bits: name the range of such "
            f"images, as in --range 0:65535"
        )
    return 0.0, 255.0


def to_8_bits(values: np.ndarray, levels: tuple[float, float]) -> np.ndarray:
    """Map greys to uint8: the levels to 0 and 255, what lies beyond them to the nearer one, NaN to 0."""
    low, high = levels
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return _table(low, high)[values]
    return _scaled(values.astype(np.float64), low, high)


@lru_cache(maxsize=4)
def _table(low: float, high: float) -> np.ndarray:
    """(65536,) uint8, all 16-bit greys mapped."""
    return _scaled(np.arange(1 << 16, dtype=np.float64), low, high)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    finite = np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    return np.rint((finite.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)
