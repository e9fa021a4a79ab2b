"""Settings of how images are decoded, shared by all commands that read images; does not import torch.

No `from __future__ import annotations` here, for the reason given in `training/settings.py`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from fastmim.config import Settings
from fastmim.errors import RequestError, shown

MAX_PIXELS = 178_956_970
"""The largest image that is decoded by default, in pixels: the limit at which Pillow itself refuses. 0.5 GB as RGB."""

_MOST_PIXELS = (1 << 31) // 3
"""PyTorch resamples no more values than a signed 32-bit number counts, in three channels."""

_NAMED = {"8bit": None, "16bit": (0.0, 65535.0)}


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Settings):
    """The images, and how they become 8-bit RGB."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"data"})

    data: str | None = None
    """Images: a directory, a list, a pack or a dataset."""

    range: str = "auto"
    """Greys of more than 8 bits: the values that become black and white, the same for all images. `16bit` is 0:65535,
    LOW:HIGH any other two numbers, `8bit` says that there are none; `auto` takes the range of the weights or the pack,
    else that of a sample of the images."""

    max_pixels: int = MAX_PIXELS
    """Skip larger images. Each data worker may take 8 bytes of memory for each of these pixels."""

    def __post_init__(self) -> None:
        check_range(self.range)
        if not 0 < self.max_pixels <= _MOST_PIXELS:
            raise RequestError(f"max_pixels is {self.max_pixels:,}; expected 1 to {_MOST_PIXELS:,}")


def check_range(value: str) -> None:
    """Raise RequestError unless this is `auto` or what `levels` takes."""
    if value != "auto":
        levels(value)


def levels(text: str) -> tuple[float, float] | None:
    """The greys that become black and white: "0:4095" -> (0, 4095); None for "8bit".

    Raises:
        RequestError: it is neither 8bit, 16bit nor two finite numbers, the lower one first.
    """
    if text in _NAMED:
        return _NAMED[text]
    low, _, high = text.partition(":")
    try:
        found = float(low), float(high)
    except ValueError:
        found = math.nan, math.nan
    if not -math.inf < found[0] < found[1] < math.inf:
        raise RequestError(
            f"range is {shown(text)}; expected auto, 8bit, 16bit or LOW:HIGH, such as 0:4095 (in YAML '0:4095')"
        )
    return found


def is_range(value: object) -> bool:
    """Whether this is a range that `levels` takes."""
    if not isinstance(value, str):
        return False
    try:
        levels(value)
    except RequestError:
        return False
    return True
