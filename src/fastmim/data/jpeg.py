"""JPEGs: their headers, and decoding at 1/2, 1/4 or 1/8 of the size, which does most of the shrinking."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg

from fastmim.data.limits import MAX_SCANNED, RESAMPLED, check_memory, check_scans, jpeg_coefficients, more_work
from fastmim.data.pixels import Box
from fastmim.data.unreadable import BadImage, one_line

ORIENTATION_TAG = 0x0112
ORIENTATIONS = range(1, 9)

_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_PROGRESSIVE = {0xC2, 0xCA}
_FRAMES = {0xC0, 0xC1, 0xC3, 0xC9} | _PROGRESSIVE  # those that libjpeg decodes (ISO 10918-1, table B.1)
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a segment
_NEXT_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # not a stuffed byte, padding or restart


def jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Height, width, and the colours to decode to, "RGB" or "GRAY"; "" if simplejpeg does not decode this file well."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return 0, 0, ""
    return height, width, {"YCbCr": "RGB", "RGB": "RGB", "Gray": "GRAY"}.get(colours, "")


def jpeg_orientation(data: bytes) -> int:
    """EXIF orientation, 1 to 8, from a JPEG's header; 1 if it is missing or invalid."""
    for segment in _header(data):
        if segment.marker == _APP1 and data.startswith(b"Exif\0\0", segment.start):
            return _tiff_orientation(data[segment.start + 6 : segment.end])
    return 1


def count_scans(data: bytes, num_pixels: int, max_pixels: int) -> int:
    """The number of scans if a JPEG has several, which are collected before they are decoded; else 0.

    Counting ends when `limits.check_scans` has enough. If the header cannot be followed, as in a JPEG inside another
    format, whatever looks like a scan counts.
    """
    progressive, num_channels = False, 1
    for segment in _header(data):
        if segment.marker in _FRAMES:
            progressive, num_channels = segment.marker in _PROGRESSIVE, data[min(segment.start + 5, len(data) - 1)]
        if segment.marker == _SOS:
            if not progressive and segment.start < len(data) and data[segment.start] >= num_channels:
                return 0
            return _count(data, segment.end, most=more_work(MAX_SCANNED, max_pixels) // max(num_pixels, 1) + 1)
    return data.count(b"\xff\xda")


def _count(data: bytes, position: int, *, most: int) -> int:
    """Count the scans from the end of the first one's header on."""
    num_scans = 1
    while num_scans < most and (found := _NEXT_MARKER.search(data, position)):
        marker, position = data[found.start() + 1], found.end()
        if marker == _EOI:
            break
        num_scans += marker == _SOS
        position += int.from_bytes(data[position : position + 2])
    return num_scans


class _Segment(NamedTuple):
    marker: int
    start: int
    """Of its content, after the length."""
    end: int


def _header(data: bytes) -> Iterator[_Segment]:
    """The segments of a JPEG up to the header of its first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in _ALONE:  # 0xFF is padding before a marker
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        yield _Segment(marker, position + 4, end)
        if marker == _SOS:
            return
        position = end


def _tiff_orientation(tiff: bytes) -> int:
    """The orientation entry of the first directory in an EXIF block (TIFF 6.0, section 2)."""
    order = "little" if tiff[:2] == b"II" else "big"

    def number(start: int, num_bytes: int) -> int:
        return int.from_bytes(tiff[start : start + num_bytes], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(directory + 2, min(directory + 2 + 12 * number(directory, 2), len(tiff) - 11), 12):
        if number(entry, 2) == ORIENTATION_TAG:
            value = number(entry + 8, 2 if number(entry + 2, 2) == 3 else 4)
            return value if value in ORIENTATIONS else 1
    return 1


def reduction(box: Box, size: int) -> int:
    """The largest f of 8, 4, 2, 1 for which 1/f of the box still has `size` pixels along both sides."""
    return next(f for f in (8, 4, 2, 1) if f == 1 or min(box.height, box.width) >= f * size)


def snap(box: Box, factor: int, height: int, width: int) -> Box:
    """Move a box of a (height, width) image to whole pixels of the image reduced by `factor`."""
    num_rows, num_columns = round(box.height / factor), round(box.width / factor)
    top = min(round(box.top / factor), -(-height // factor) - num_rows)
    left = min(round(box.left / factor), -(-width // factor) - num_columns)
    return Box(top, left, num_rows, num_columns)


def decode_jpeg(data: bytes, height: int, width: int, factor: int, colours: str, *, max_pixels: int) -> np.ndarray:
    """uint8 (height / factor, width / factor, 1 or 3), rounded up.

    Raises:
        BadImage: The file is corrupted, or decoding it would take too much memory or too long.
    """
    num_pixels, num_scans = height * width, count_scans(data, height * width, max_pixels)
    check_scans(num_pixels, num_scans, max_pixels)
    collected = jpeg_coefficients(num_pixels, 3 if colours == "RGB" else 1) if num_scans else 0
    decoded = num_pixels // factor**2
    check_memory(max(collected + (3 if colours == "RGB" else 1) * decoded, RESAMPLED * decoded), max_pixels)
    try:
        # strict: a corrupted file raises, while libjpeg and Pillow fill in grey or garbage.
        return simplejpeg.decode_jpeg(
            data,
            colours,
            fastdct=False,
            fastupsample=False,
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            strict=True,
        )
    except ValueError as error:
        raise BadImage(one_line(error)) from None
