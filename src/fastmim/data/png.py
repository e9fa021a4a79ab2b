"""PNGs whose pixels another library inflates, three times as fast as Pillow's zlib; Pillow decodes them as ever.

The compressed stream is replaced by the same stream uncompressed, so everything but the inflation stays Pillow's:
which files are images, filters, palettes, transparency, and the checksum over what was inflated.
"""

from __future__ import annotations

import struct

try:
    import deflate
except ImportError:  # the extra `png` is not installed: Pillow inflates
    deflate = None

_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type (PNG, 11.2.2)
_MAX_INFLATED = 1 << 26  # bytes; twice as many are held until Pillow has read them
_BLOCK = 0xFFFF  # the most bytes in a stored block (RFC 1951, 3.2.4)


def inflated(data: bytes, max_pixels: int) -> bytes:
    """The same PNG with its pixels stored instead of compressed.

    Returns:
        `data` itself for any other file: not a PNG, interlaced, animated, large, or odd in any way, which Pillow then
        judges; and always without the package `deflate`.
    """
    size = _inflated_size(data, max_pixels)
    if deflate is None or not 0 < size <= _MAX_INFLATED:
        return data
    start, end, pieces = _pixel_chunks(data)
    try:
        raw = deflate.zlib_decompress(b"".join(pieces), size)
    except deflate.DeflateError:
        return data
    if len(raw) != size:
        return data
    stream = [b"IDAT\x78\x01", *_stored(raw), deflate.adler32(raw).to_bytes(4)]
    length, checksum = sum(map(len, stream)) - 4, 0
    for piece in stream:
        checksum = deflate.crc32(piece, checksum)
    return b"".join((data[:start], length.to_bytes(4), *stream, checksum.to_bytes(4), data[end:]))


def _inflated_size(data: bytes, max_pixels: int) -> int:
    """The bytes that the header promises, a filter's number before each row; 0 if the file is not for this module."""
    if not data.startswith(_START) or len(data) < 33:
        return 0
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if interlace or width * height > max_pixels:
        return 0
    return height * (1 + -(-width * _CHANNELS.get(colour, 0) * depth // 8))


def _pixel_chunks(data: bytes) -> tuple[int, int, list[memoryview]]:
    """Where the first run of IDAT chunks starts and ends, and what they hold; nothing if it is cut off."""
    view, position, start, pieces = memoryview(data), 8, 0, []
    while position + 12 <= len(data):
        kind, end = data[position + 4 : position + 8], position + 12 + int.from_bytes(view[position : position + 4])
        if kind == b"IDAT":
            start = start or position
            pieces.append(view[position + 8 : end - 4])
        elif pieces:
            return start, position, pieces
        position = end
    return 0, 0, []


def _stored(raw: bytearray) -> list[bytes | memoryview]:
    """A deflate stream of stored blocks."""
    pieces: list[bytes | memoryview] = []
    for start in range(0, len(raw), _BLOCK):
        block = memoryview(raw)[start : start + _BLOCK]
        is_last = start + _BLOCK >= len(raw)
        pieces += (struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block)
    return pieces
