"""PNGs whose pixels libdeflate inflates: which files are images, and what they show, stays Pillow's.

The compressed stream is replaced by the same stream uncompressed, so that all other steps are Pillow's, with the
checksum over what was inflated. Of plain greys and RGB, kornia's decoder undoes the filters too, once Pillow has read
the header and nothing is left that it could refuse.
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

try:  # the extra `png`; without it Pillow does all
    import deflate
    import kornia_rs
except ImportError:
    deflate = kornia_rs = None  # type: ignore[assignment, unused-ignore]

_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type (PNG, 11.2.2)
_MAX_INFLATED = 1 << 26  # bytes; twice as many are held until Pillow has read them
_END, _END_CHECKSUM = b"\0\0\0\0IEND", b"\xaeB`\x82"
_LAST_FILTER = 4
_BLOCK = 0xFFFF  # the most bytes in a stored block (RFC 1951, 3.2.4)


def inflated(data: bytes, max_pixels: int) -> bytes:
    """The same PNG with its pixels stored instead of compressed.

    Returns:
        `data` itself for any other file: not a PNG, interlaced, large, or odd in any way, which Pillow then
        judges; and always without the package `deflate`, or without `kornia_rs`.
    """
    start, end, raw = _inflate(data, max_pixels)
    return b"".join((data[:start], *_stored_chunk(raw), data[end:])) if raw else data


def decode_plain(data: bytes, image: Image.Image) -> np.ndarray | None:
    """The pixels of a PNG of 8-bit greys or opaque RGB, if Pillow would certainly decode it, to the same pixels.

    Args:
        data: The file.
        image: The same as Pillow has opened it, and not decoded it.

    Returns:
        uint8 (H, W, 1 or 3); None for any other file, and without the packages `deflate` and `kornia_rs`.
    """
    height, width, colour = image.height, image.width, {"L": 0, "RGB": 2}.get(image.mode)
    header = struct.pack(">IIBBBBB", width, height, 8, colour or 0, 0, 0, 0)
    opened_so = [("zip", (0, 0, width, height), data.find(b"IDAT") + 4, image.mode)]
    if kornia_rs is None or colour is None or image.format != "PNG" or data[16:29] != header or image.tile != opened_so:  # type: ignore[attr-defined]
        return None
    if "transparency" in image.info or image.n_frames > 1:  # type: ignore[attr-defined]
        return None
    _, end, raw = _inflate(data, height * width)
    if not raw or not data.startswith(_END, end):  # Pillow reads what follows the pixels, up to the end
        return None
    if np.frombuffer(raw, dtype=np.uint8).reshape(height, -1)[:, 0].max() > _LAST_FILTER:
        return None
    alone = b"".join((data[:33], *_stored_chunk(raw), _END, _END_CHECKSUM))
    return kornia_rs.io.decode_image_png_u8(alone, (height, width), "rgb" if colour else "mono")


def _inflate(data: bytes, max_pixels: int) -> tuple[int, int, bytearray]:
    """Where the chunks of the pixels start and end, and what they hold, inflated: nothing if Pillow has to judge."""
    size = _inflated_size(data, max_pixels)
    if deflate is None or not 0 < size <= _MAX_INFLATED:
        return 0, 0, bytearray()
    start, end, pieces = _pixel_chunks(data)
    try:
        raw = deflate.zlib_decompress(b"".join(pieces), size)
    except deflate.DeflateError:
        return 0, 0, bytearray()
    return (start, end, raw) if len(raw) == size else (0, 0, bytearray())


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


def _stored_chunk(raw: bytearray) -> list[bytes | memoryview]:
    """One IDAT chunk with a stream of stored blocks."""
    stream: list[bytes | memoryview] = [b"IDAT\x78\x01"]
    for start in range(0, len(raw), _BLOCK):
        block = memoryview(raw)[start : start + _BLOCK]
        is_last = start + _BLOCK >= len(raw)
        stream += (struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block)
    stream.append(deflate.adler32(raw).to_bytes(4))
    length, checksum = sum(map(len, stream)) - 4, 0
    for piece in stream:
        checksum = deflate.crc32(piece, checksum)
    return [length.to_bytes(4), *stream, checksum.to_bytes(4)]
