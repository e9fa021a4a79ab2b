"""Images as a pack stores them: upright, shrunk, as JPEG or raw pixels; prepared by worker processes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch.utils.data import Dataset

from fastmim.data.decode import decode_whole
from fastmim.data.greys import PLAIN, Decoding
from fastmim.data.jpeg import jpeg_header, jpeg_orientation
from fastmim.data.loader import read_ahead
from fastmim.data.sources import Source
from fastmim.data.unreadable import UNREADABLE, BadImage, one_line, reason

SUBSAMPLING = "444"
"""Full colour resolution: the original JPEG has halved it already, and halving it again would cost 5 dB."""
_BATCH_SIZE = 16


def make_small(
    data: bytes | np.ndarray, decoding: Decoding = PLAIN, *, codec: str, short_side: int, quality: int = 90
) -> tuple[bytes, tuple[int, int, int]]:
    """Return an image as a pack stores it.

    A JPEG that is already small enough and not rotated by EXIF enters a JPEG pack unchanged, so it loses nothing;
    it is still decoded, to make sure that it is readable.

    Args:
        data: An encoded file, or uint8 (H, W), (H, W, 1) or (H, W, 3).
        decoding: How it is decoded.
        codec: "jpeg" or "raw".
        short_side: Upper bound on the shorter side, in pixels.
        quality: Of the JPEGs, 1 to 100.

    Returns:
        The bytes, and (height, width, channels).

    Raises:
        BadImage: The data is not an image, is corrupted or too large, or has a side too long for a JPEG.
    """
    pixels = decode_whole(data, decoding, short_side=short_side)
    height, width, channels = pixels.shape
    if codec == "raw":
        return pixels.tobytes(), (height, width, channels)
    if isinstance(data, bytes) and jpeg_header(data)[:2] == (height, width) and jpeg_orientation(data) == 1:
        return data, (height, width, channels)
    try:
        encoded = simplejpeg.encode_jpeg(
            pixels, quality, "GRAY" if channels == 1 else "RGB", "Gray" if channels == 1 else SUBSAMPLING
        )
    except ValueError as error:  # more than 65,500 pixels along a side
        raise BadImage(f"{width} x {height} cannot be a JPEG: {one_line(error)}") from None
    return encoded, (height, width, channels)


@dataclass(frozen=True, eq=False)
class _ShrunkImages(Dataset[dict[str, Any]]):
    """A map-style dataset for the workers: positions in the source -> the images as a pack stores them."""

    source: Source
    codec: str
    short_side: int
    quality: int

    def __getitems__(self, positions: range) -> dict[str, Any]:
        contents: list[bytes] = []
        rows: list[tuple[int, int, int, int, int]] = []
        bad: list[tuple[str, str]] = []
        for position in positions:
            try:
                content, shape = make_small(
                    self.source.read(position),
                    self.source.decoding,
                    codec=self.codec,
                    short_side=self.short_side,
                    quality=self.quality,
                )
            except UNREADABLE as error:
                bad.append((self.source.name(position), reason(error)))
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
        return -(-(self.stop - self.start) // _BATCH_SIZE)

    def __iter__(self) -> Iterator[range]:
        starts = range(self.start, self.stop, _BATCH_SIZE)
        return (range(start, min(start + _BATCH_SIZE, self.stop)) for start in starts)


def load_small(
    source: Source, *, codec: str, short_side: int, quality: int, first: int = 0, num_workers: int = 0
) -> Generator[dict[str, Any], None, None]:
    """Read a source in order, starting at position `first`, in batches of sixteen images.

    Yields:
        "bytes" uint8 (n,), the stored images one after another; "rows" int64 (b, 5), each image's position, number
        of bytes, height, width and channels; "bad", the (name, reason) of each unreadable image; and "read", the
        range of positions that the batch covers.

    Raises:
        RunError: A worker process died.
    """
    return read_ahead(
        _ShrunkImages(source, codec, short_side, quality),
        _Ranges(first, len(source)),
        source.origin,
        num_workers=num_workers,
    )
