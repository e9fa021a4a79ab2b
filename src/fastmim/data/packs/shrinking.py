"""Any image as a pack keeps it: upright, its shorter side shrunk, as JPEG or as pixels; by worker processes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch.utils.data import Dataset

from fastmim.data.decode import BadImage, decode_whole, jpeg_header, jpeg_orientation, one_line
from fastmim.data.loader import read_ahead
from fastmim.data.sources import Source

QUALITY, SUBSAMPLING = 95, "444"
"""Colour at full resolution: the picture's own JPEG has halved it already, and twice is the main loss (5 dB)."""
_AT_ONCE = 16


def make_small(data: bytes | np.ndarray, *, codec: str, short_side: int) -> tuple[bytes, tuple[int, int, int]]:
    """What a pack stores of an image.

    A JPEG that is small enough already and not turned by EXIF goes into a JPEG pack as it is, so that it
    loses nothing; it is decoded all the same, to know that it can be.

    Args:
        data: An encoded file, or uint8 (H, W), (H, W, 1) or (H, W, 3).
        codec: "jpeg" or "raw".
        short_side: The longest that the shorter side may be, in pixels.

    Returns:
        The bytes, and (height, width, channels).

    Raises:
        BadImage: The data is no picture, damaged, too large, or too long for a JPEG.
    """
    pixels = decode_whole(data, short_side=short_side)
    height, width, channels = pixels.shape
    if codec == "raw":
        return pixels.tobytes(), (height, width, channels)
    if isinstance(data, bytes) and jpeg_header(data)[:2] == (height, width) and jpeg_orientation(data) == 1:
        return data, (height, width, channels)
    try:
        encoded = simplejpeg.encode_jpeg(
            pixels, QUALITY, "GRAY" if channels == 1 else "RGB", "Gray" if channels == 1 else SUBSAMPLING
        )
    except ValueError as error:  # more than 65,500 pixels along a side
        raise BadImage(f"{width} x {height} cannot be a JPEG: {one_line(error)}") from None
    return encoded, (height, width, channels)


@dataclass(frozen=True, eq=False)
class _Small(Dataset[dict[str, Any]]):
    """The map-style dataset that the workers hold: positions in the source -> what a pack stores of them."""

    source: Source
    codec: str
    short_side: int

    def __getitems__(self, positions: range) -> dict[str, Any]:
        contents: list[bytes] = []
        rows: list[tuple[int, int, int, int, int]] = []
        bad: list[tuple[str, str]] = []
        for position in positions:
            try:
                content, shape = make_small(self.source.read(position), codec=self.codec, short_side=self.short_side)
            except BadImage as error:
                bad.append((self.source.name(position), str(error)))
            except OSError as error:
                bad.append((self.source.name(position), error.strerror or type(error).__name__))
            else:
                contents.append(content)
                rows.append((position, len(content), *shape))
        # A tensor travels between processes in shared memory, without a copy.
        joined = torch.from_numpy(np.frombuffer(bytearray().join(contents), dtype=np.uint8))
        return {"bytes": joined, "rows": np.array(rows, dtype=np.int64).reshape(-1, 5), "bad": bad, "read": positions}


@dataclass(frozen=True)
class _Ranges:
    start: int
    stop: int

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // _AT_ONCE)

    def __iter__(self) -> Iterator[range]:
        starts = range(self.start, self.stop, _AT_ONCE)
        return (range(start, min(start + _AT_ONCE, self.stop)) for start in starts)


def load_small(
    source: Source, *, codec: str, short_side: int, first: int = 0, num_workers: int = 0
) -> Generator[dict[str, Any], None, None]:
    """Read a source from position `first` on, in order, sixteen images at a time.

    Yields:
        "bytes" uint8 (n,), the stored images one behind the other; "rows" int64 (b, 5), of each its position,
        number of bytes, height, width and channels; "bad", a list of (name, reason) of those left out; and
        "read", the range of positions that these come from.

    Raises:
        RunError: A worker died.
    """
    return read_ahead(
        _Small(source, codec, short_side), _Ranges(first, len(source)), source.origin, num_workers=num_workers
    )
