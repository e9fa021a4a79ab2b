"""Decode a box of an upright RGB image to a given size, from encoded bytes or an array, or raise BadImage.

JPEGs take a fast path: simplejpeg reads the header, the box is chosen, and the decoder's own DCT
scaling by 1/2, 1/4 or 1/8 does most of the shrinking. Everything else goes through Pillow.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 178_956_970
"""The largest image that is decoded, in pixels: the limit at which Pillow itself refuses. 0.5 GB as RGB."""

# An allow-list, so that a new plugin is not trusted unseen. Left out are documents, video, data containers, formats
# that Pillow only identifies, EPS, which runs Ghostscript, and IPTC, which opens the file inside it in any format.
_FORMATS = {
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO", "IM", "IMT",
    "JPEG", "JPEG2000", "MCIDAS", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN",
    "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB",
}  # fmt: skip

# EXIF orientation -> (transpose, then flip rows, then flip columns) that turns the stored frame upright.
_UPRIGHT = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_ORIENTATION_TAG = 0x0112


class BadImage(ValueError):  # noqa: N818 - describes an image, not the program
    """One image cannot be used; the message is the reason in one line."""


UNREADABLE = (OSError, ValueError, MemoryError, RuntimeError)
"""Whatever reading and decoding one image may raise; it makes that image unreadable and does not end the run."""


def reason(error: Exception) -> str:
    """Why an image is skipped, in one line."""
    if isinstance(error, BadImage):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}{f': {one_line(error)}' if str(error) else ''}"


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


@cache
def image_formats() -> tuple[str, ...]:
    """The names of the Pillow formats that count as images."""
    Image.init()
    return tuple(name for name in Image.ID if name in Image.OPEN and name in _FORMATS)


@cache
def image_extensions() -> frozenset[str]:
    """The file extensions of those formats, in lower case with the dot."""
    formats = set(image_formats())
    return frozenset(end for end, name in Image.registered_extensions().items() if name in formats)


def decode_box(
    data: bytes | np.ndarray,
    size: int,
    choose_box: Callable[[int, int], Box],
    *,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Crop a box of an image and resize it to a square (antialiased bicubic).

    EXIF orientation is applied. Palettes, CMYK and grey become RGB; transparency is composited on white, as
    viewers show it; 16-bit greys are scaled by 1/256, 32-bit and float greys from their own range; an
    animation gives its first frame.

    Args:
        data: An encoded file, or uint8 (H, W), (H, W, 1) or (H, W, 3).
        size: Side of the result in pixels.
        choose_box: (height, width) of the upright image -> the box in it. If a JPEG is decoded at 1/f of its
            size, the box moves to multiples of f: by half a pixel of the result at most.
        max_pixels: Larger images are refused before they are decoded.

    Returns:
        (3, size, size) uint8.

    Raises:
        BadImage: The data is not an image, is corrupted, or is too large.
    """
    if isinstance(data, np.ndarray):
        return _crop_array(data, size, choose_box)
    height, width, colours = jpeg_header(data)
    if colours:
        if height * width > max_pixels:
            raise BadImage(_too_large(max_pixels, f"{width} x {height}"))
        orientation = jpeg_orientation(data)
        box = _stored_box(choose_box, height, width, orientation)
        factor = reduction(box, size)
        pixels = _decode_jpeg(data, height, width, factor, colours)
        crop = _resample(_cut(pixels, snap(box, factor, height, width)), size, size)
    else:
        image, orientation = _open_with_pillow(data, max_pixels)
        box = _stored_box(choose_box, image.height, image.width, orientation)
        with only_images(max_pixels):  # Pillow checks crops too
            region = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        crop = _resample(np.array(region), size, size)
    return _turn_upright(crop.expand(3, size, size), orientation)


def decode_whole(
    data: bytes | np.ndarray, *, short_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode a whole image, upright, and shrink it if it is larger (antialiased bicubic).

    Modes, transparency and animations are treated as in `decode_box`.

    Args:
        data: An encoded file, or uint8 (H, W), (H, W, 1) or (H, W, 3).
        short_side: The shorter side is shrunk to this many pixels; smaller images keep their size.
        max_pixels: Larger images are refused before they are decoded.

    Returns:
        uint8 (H, W, 1) if the image is grey, else (H, W, 3); C-contiguous, as encoders need it.

    Raises:
        BadImage: The data is not an image, is corrupted, or is too large.
    """
    if isinstance(data, np.ndarray):
        _check_array(data)
        return np.ascontiguousarray(_shrink(data, data.shape[0], data.shape[1], short_side))
    height, width, colours = jpeg_header(data)
    if colours:
        if height * width > max_pixels:
            raise BadImage(_too_large(max_pixels, f"{width} x {height}"))
        orientation = jpeg_orientation(data)
        # The decoder keeps twice the size for the resampling: a quarter slower than for crops, but 7 dB more accurate.
        factor = reduction(Box(0, 0, height, width), 2 * (short_side or max(height, width)))
        pixels = _decode_jpeg(data, height, width, factor, colours)
    else:
        image, orientation = _open_with_pillow(data, max_pixels)
        height, width, pixels = image.height, image.width, np.array(image)
    transpose, flip_rows, flip_columns = _UPRIGHT[orientation]
    pixels = _shrink(pixels, height, width, short_side)
    pixels = pixels.transpose(1, 0, 2) if transpose else pixels
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Height, width, and the colours to decode to, "RGB" or "GRAY"; "" if simplejpeg does not decode this file well."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return 0, 0, ""
    return height, width, {"YCbCr": "RGB", "RGB": "RGB", "Gray": "GRAY"}.get(colours, "")


def jpeg_orientation(data: bytes) -> int:
    """EXIF orientation, 1 to 8, from a JPEG's header; 1 if it is missing or invalid."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        if data[position + 1] == 0xFF:  # padding before a marker
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            return _tiff_orientation(data[position + 10 : end])
        position = end
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    """The orientation entry of the first directory in an EXIF block (TIFF 6.0, section 2)."""
    order = "little" if tiff[:2] == b"II" else "big"

    def number(start: int, num_bytes: int) -> int:
        return int.from_bytes(tiff[start : start + num_bytes], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(directory + 2, min(directory + 2 + 12 * number(directory, 2), len(tiff) - 11), 12):
        if number(entry, 2) == _ORIENTATION_TAG:
            value = number(entry + 8, 2 if number(entry + 2, 2) == 3 else 4)
            return value if value in _UPRIGHT else 1
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


def _decode_jpeg(data: bytes, height: int, width: int, factor: int, colours: str) -> np.ndarray:
    """uint8 (height / factor, width / factor, 1 or 3), rounded up."""
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


def _crop_array(array: np.ndarray, size: int, choose_box: Callable[[int, int], Box]) -> Tensor:
    _check_array(array)
    region = _cut(array, choose_box(array.shape[0], array.shape[1]))
    return _resample(region, size, size).expand(3, size, size)


def _check_array(array: np.ndarray) -> None:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise BadImage(f"array of {array.dtype} {array.shape}, not uint8 (H, W), (H, W, 1) or (H, W, 3)")


def _cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def _shrink(pixels: np.ndarray, height: int, width: int, short_side: int | None) -> np.ndarray:
    """Shrink a (height, width) image, or the smaller version of it in `pixels`, to (h, w, C) of that short side."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if short_side is None or min(height, width) <= short_side:
        return pixels
    scale = short_side / min(height, width)
    num_rows, num_columns = max(1, round(height * scale)), max(1, round(width * scale))
    return _resample(pixels, num_rows, num_columns).permute(1, 2, 0).numpy()


@cache
def _take_read_only() -> None:
    """Use up torch's one warning per process about read-only memory, which nothing writes to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(b"0", dtype=np.uint8))


def _resample(pixels: np.ndarray, num_rows: int, num_columns: int) -> Tensor:
    """uint8 (h, w) or (h, w, C) -> uint8 (C, num_rows, num_columns)."""
    if not pixels.flags.writeable:
        _take_read_only()
    if min(pixels.strides) < 0:  # torch rejects negative strides
        pixels = pixels.copy()
    image = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)[None]
    return F.interpolate(image, size=(num_rows, num_columns), mode="bicubic", antialias=True)[0]


def _stored_box(choose_box: Callable[[int, int], Box], height: int, width: int, orientation: int) -> Box:
    """Choose a box in the upright frame, and express it in the (height, width) frame of the file."""
    transpose, flip_rows, flip_columns = _UPRIGHT[orientation]
    if transpose:
        height, width = width, height
    box = choose_box(height, width)
    top = height - box.top - box.height if flip_rows else box.top
    left = width - box.left - box.width if flip_columns else box.left
    return Box(left, top, box.width, box.height) if transpose else Box(top, left, box.height, box.width)


def _turn_upright(image: Tensor, orientation: int) -> Tensor:
    """Turn a stored (C, H, W) image upright."""
    transpose, flip_rows, flip_columns = _UPRIGHT[orientation]
    if transpose:
        image = image.transpose(1, 2)
    axes = [axis for axis, flip in ((1, flip_rows), (2, flip_columns)) if flip]
    return image.flip(axes) if axes else image


def _open_with_pillow(data: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    """Decode an image to "L" or "RGB" in the frame of the file, and read its orientation."""
    try:
        with only_images(max_pixels):
            image = Image.open(io.BytesIO(data), formats=image_formats())
            image.load()
            orientation = _pillow_orientation(image)
            return to_rgb(image), orientation
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(_too_large(max_pixels)) from None
    except UnidentifiedImageError:
        start = f"begins with {data[:16]!r}" if data else "the file is empty"
        raise BadImage(f"not an image: {start}") from None
    except Exception as error:
        # Pillow's plugins raise anything on corrupted files: OSError, SyntaxError, struct.error, KeyError ...
        raise BadImage(one_line(error)) from None


@contextmanager
def only_images(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Restrict Pillow to `image_formats` and to images of at most `max_pixels`, inside containers too, and silence it.

    This changes Pillow's global state while the block runs.
    """
    formats, before = list(image_formats()), (Image.ID[:], Image.MAX_IMAGE_PIXELS)
    Image.ID[:], Image.MAX_IMAGE_PIXELS = formats, max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.ID[:], Image.MAX_IMAGE_PIXELS = before


def _pillow_orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # corrupted EXIF does not affect the pixels
        return 1
    return orientation if orientation in _UPRIGHT else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any Pillow mode to 8-bit "RGB", or to "L" if it is grey and opaque."""
    if image.mode[0] in "IF":
        image = Image.fromarray(_to_8_bits(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """Scale grey of more than 8 bits to uint8; Pillow's own conversion clips to white."""
    values = np.asarray(image)
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):  # some Pillow releases open 16 bits as "I"
        return (values >> 8).astype(np.uint8)
    # 32-bit integers and floats have no agreed white.
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _too_large(max_pixels: int, size: str = "the image") -> str:
    return f"{size} has more than the {max_pixels:,} pixels that are decoded"


def one_line(error: Exception) -> str:
    """An exception's message without line breaks, or its type if it has no message."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
