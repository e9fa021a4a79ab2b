"""What decoding one image may cost, in pixels, memory and work; checked before it is decoded.

A file of a few kilobytes can claim to be an image of gigabytes. Nothing here decodes: sizes come from headers, and
the memory that each decoder takes on top of its image was measured.
"""

from __future__ import annotations

import math
import re

from PIL import Image

from fastmim.data.settings import MAX_PIXELS
from fastmim.data.unreadable import BadImage

MAX_MEMORY = 900_000_000
"""The most memory that decoding one image may take at a time, in bytes, unless more pixels are allowed."""

_BYTES_A_PIXEL = 8
"""The memory for each pixel that is allowed beyond the usual number: that of an RGB image in most formats."""

RESAMPLED = 5
"""The bytes a pixel of a grey image while torch resamples it: one, and a copy in four channels."""

MAX_SCANNED = 4_000_000_000
"""The most pixels that the scans of a progressive JPEG may run over in all: 2 s on a slow core."""

MAX_IN_PYTHON = 10_000_000
"""The most pixels, and bytes in the file, of formats that Pillow decodes in Python: about 3 s."""

MAX_JPEG_2000 = 400_000_000
"""The most samples (pixels times channels) of a JPEG 2000: 5 s."""

MAX_INSIDE = 1 << 22
"""The most pixels of an image inside an icon or a texture."""

_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes a pixel in Pillow; others 4
# The start of a JPEG 2000 codestream (ISO 15444-1, A.5.1): the sizes of the image and of its tiles.
_SIZES = re.compile(rb"\xff\x4f\xff\x51.{4}(.{4})(.{4}).{8}(.{4})(.{4})", re.DOTALL)


def check_pixels(height: int, width: int, max_pixels: int, *, fixed: bool = False) -> None:
    """Raise BadImage if an image has more pixels than that; `fixed` if no setting raises the limit."""
    if height * width > max_pixels:
        raise BadImage(f"{width} x {height} has {more_than(max_pixels, 0 if fixed else height * width)}")


def more_than(max_pixels: int, num_pixels: int) -> str:
    """What a message says of too large an image; `num_pixels` is 0 if they are unknown, or no setting allows them."""
    remedy = f": allow it with --max-pixels {num_pixels}, or remove it" if num_pixels else ""
    return f"more than the {max_pixels:,} pixels that are decoded{remedy}"


def check_memory(num_bytes: float, max_pixels: int) -> None:
    """Raise BadImage if decoding an image takes more memory than `MAX_MEMORY`, or `max_pixels` allow."""
    most = _BYTES_A_PIXEL * max_pixels if max_pixels > MAX_PIXELS else MAX_MEMORY
    if num_bytes > most:
        enough = max(math.ceil(num_bytes / _BYTES_A_PIXEL), MAX_PIXELS + 1)
        raise BadImage(
            f"decoding it takes {num_bytes / 1e6:,.0f} MB of memory, more than {most // 10**6:,} MB: allow it with "
            f"--max-pixels {enough}, or remove it"
        )


def more_work(most: int, max_pixels: int) -> int:
    """A limit for images of the usual number of pixels, raised in proportion if more are allowed."""
    return most * max(max_pixels, MAX_PIXELS) // MAX_PIXELS


def check_scans(num_pixels: int, num_scans: int, max_pixels: int) -> None:
    """Raise BadImage if a JPEG's scans run over more pixels in all than `MAX_SCANNED`, or `max_pixels` allow."""
    if num_scans * num_pixels > more_work(MAX_SCANNED, max_pixels):
        raise BadImage(f"{num_scans:,} or more scans of {num_pixels:,} pixels take too long to decode")


def check_opened(image: Image.Image, data: bytes, *, num_scans: int, max_pixels: int) -> None:
    """Check an image that Pillow has opened from `data`, and not yet decoded.

    Args:
        image: The image.
        data: Its file.
        num_scans: The number of its scans if it is a JPEG of several.
        max_pixels: The most pixels that are allowed.

    Raises:
        BadImage: Decoding it would take too much memory or too long.
    """
    num_pixels = image.width * image.height
    check_scans(num_pixels, num_scans, max_pixels)
    in_python = any(tile.codec_name in Image.DECODERS for tile in getattr(image, "tile", ()))
    if in_python and max(num_pixels, len(data)) > MAX_IN_PYTHON:
        raise BadImage(f"more than {MAX_IN_PYTHON:,} pixels or bytes take too long to decode as {image.format}")
    most = more_work(MAX_JPEG_2000, max_pixels)
    if image.format == "JPEG2000" and num_pixels * len(image.getbands()) > most:
        raise BadImage(f"more than {most:,} samples take too long to decode as JPEG2000")
    stored = _STORED.get(image.mode, 4) * num_pixels
    needed = max(stored + max(_needed_to_decode(image, data, num_scans), 3 * num_pixels), RESAMPLED * num_pixels)
    check_memory(needed, max_pixels)


def _needed_to_decode(image: Image.Image, data: bytes, num_scans: int) -> int:
    """The bytes that a decoder takes on top of the image that it fills."""
    num_pixels, num_bands = image.width * image.height, len(image.getbands())
    if image.format in ("WEBP", "AVIF"):  # canvases of an animation; planes of up to 12 bits, and their sum
        return 12 * num_pixels
    if image.format == "JPEG2000":
        whole = 6 * num_bands * num_pixels
        return max((_needed_by_jpeg_2000(found, num_bands) for found in _SIZES.finditer(data)), default=whole)
    if image.format == "TIFF":
        return _needed_by_tiff(image)
    if image.format == "TGA":  # mirrored when it is complete
        return 4 * num_pixels
    return jpeg_coefficients(num_pixels, num_bands) if num_scans else 0


def jpeg_coefficients(num_pixels: int, num_bands: int) -> int:
    """The bytes in which a JPEG of several scans is collected: 16 bits each, without subsampling."""
    return 2 * num_bands * num_pixels


def _needed_by_jpeg_2000(sizes: re.Match[bytes], num_bands: int) -> int:
    """A tile, in four bytes a sample and then in two, and the 16 KB that are kept of each tile."""
    width, height, tile_width, tile_height = (max(1, int.from_bytes(size)) for size in sizes.groups())
    num_tiles = -(-width // tile_width) * -(-height // tile_height)
    return 6 * num_bands * min(width, tile_width) * min(height, tile_height) + 16_000 * num_tiles


def _needed_by_tiff(image: Image.Image) -> int:
    """A strip or tile as it is in the file, or the image turned upright."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = tags.get(258, (1,))
    depth = max(4, sum(bits) // 8, len(bits) and bits[0] * tags.get(277, 1) // 8)
    rows, columns = tags.get(323, min(tags.get(278, image.height), image.height)), tags.get(322, image.width)
    chunk = depth * rows * columns if any(tile.codec_name == "libtiff" for tile in image.tile) else 0  # type: ignore[attr-defined]
    turned = 4 * image.width * image.height if tags.get(274, 1) != 1 else 0
    return max(chunk, turned)
