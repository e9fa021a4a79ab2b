"""Decode a box of an upright RGB image to a given size, from encoded bytes or an array, or raise BadImage.

JPEGs take a fast path: simplejpeg reads the header, the box is chosen, and the decoder's own DCT
scaling by 1/2, 1/4 or 1/8 does most of the shrinking. Everything else goes through Pillow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmim.data.greys import PLAIN, Decoding
from fastmim.data.jpeg import decode_jpeg, jpeg_header, jpeg_orientation, reduction, snap
from fastmim.data.limits import check_pixels
from fastmim.data.pillow import identified, opened, orientation_of
from fastmim.data.pixels import Box, to_array
from fastmim.data.png import decode_plain
from fastmim.data.unreadable import BadImage

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


def decode_box(
    data: bytes | np.ndarray,
    size: int,
    choose_box: Callable[[int, int], Box],
    decoding: Decoding = PLAIN,
) -> Tensor:
    """Crop a box of an image and resize it to a square (antialiased bicubic).

    EXIF orientation is applied. Palettes, CMYK and grey become RGB; transparency is composited on white, as
    viewers show it; greys of more than 8 bits are mapped by the levels of `decoding`; of colours of 16 bits the
    upper 8 are kept; an animation gives its first frame.

    Args:
        data: An encoded file, or uint8 (H, W), (H, W, 1) or (H, W, 3).
        size: Side of the result in pixels.
        choose_box: (height, width) of the upright image -> the box in it. If a JPEG is decoded at 1/f of its
            size, the box moves to multiples of f: by half a pixel of the result at most.
        decoding: Levels, and the largest image; larger ones are refused before they are decoded.

    Returns:
        (3, size, size) uint8.

    Raises:
        BadImage: The data is not an image, is corrupted, or would take too much memory or too long (`limits`).
    """
    if isinstance(data, np.ndarray):
        return _crop_array(data, size, choose_box)
    height, width, colours = jpeg_header(data)
    if colours:
        check_pixels(height, width, decoding.max_pixels)
        orientation = jpeg_orientation(data)
        box = _stored_box(choose_box, height, width, orientation)
        factor = reduction(box, size)
        pixels = decode_jpeg(data, height, width, factor, colours, max_pixels=decoding.max_pixels)
        crop = _resample(_cut(pixels, snap(box, factor, height, width)), size, size)
    else:
        region, _, _, orientation = _decode(data, decoding, choose_box)
        crop = _resample(region, size, size)
    return _turn_upright(crop.expand(3, size, size), orientation)


def decode_whole(data: bytes | np.ndarray, decoding: Decoding = PLAIN, *, short_side: int | None = None) -> np.ndarray:
    """Decode a whole image, upright, and shrink it if it is larger (antialiased bicubic).

    Modes, transparency and animations are treated as in `decode_box`.

    Args:
        data: An encoded file, or uint8 (H, W), (H, W, 1) or (H, W, 3).
        short_side: The shorter side is shrunk to this many pixels; smaller images keep their size.
        decoding: Levels, and the largest image; larger ones are refused before they are decoded.

    Returns:
        uint8 (H, W, 1) if the image is grey, else (H, W, 3); C-contiguous, as encoders need it.

    Raises:
        BadImage: The data is not an image, is corrupted, or would take too much memory or too long (`limits`).
    """
    if isinstance(data, np.ndarray):
        _check_array(data)
        return np.ascontiguousarray(_shrink(data, data.shape[0], data.shape[1], short_side))
    height, width, colours = jpeg_header(data)
    if colours:
        check_pixels(height, width, decoding.max_pixels)
        orientation = jpeg_orientation(data)
        # The decoder keeps twice the size for the resampling: a quarter slower than for crops, but 7 dB more accurate.
        factor = reduction(Box(0, 0, height, width), 2 * (short_side or max(height, width)))
        pixels = decode_jpeg(data, height, width, factor, colours, max_pixels=decoding.max_pixels)
    else:
        pixels, height, width, orientation = _decode(data, decoding)
    transpose, flip_rows, flip_columns = _UPRIGHT[orientation]
    pixels = _shrink(pixels, height, width, short_side)
    pixels = pixels.transpose(1, 0, 2) if transpose else pixels
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def _decode(
    data: bytes, decoding: Decoding, choose_box: Callable[[int, int], Box] | None = None
) -> tuple[np.ndarray, int, int, int]:
    """A box of an image that is no JPEG, by default all of it, and the whole one's height, width and orientation."""
    choose_box = choose_box or (lambda height, width: Box(0, 0, height, width))
    if data.startswith(b"\x89PNG"):
        with identified(data, decoding.max_pixels) as image:
            pixels = decode_plain(data, image)
            if pixels is not None:
                height, width, orientation = image.height, image.width, orientation_of(image)
                return _cut(pixels, _stored_box(choose_box, height, width, orientation)), height, width, orientation
    with opened(data, decoding.max_pixels) as (image, orientation):
        height, width = image.height, image.width
        pixels = to_array(image, decoding, _stored_box(choose_box, height, width, orientation))
    return pixels, height, width, orientation


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
    # The batch's axis comes before the permutation: torch then sees channels-last memory, and is twice as fast.
    image = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None])[None].permute(0, 3, 1, 2)
    if pixels.shape[:2] == (num_rows, num_columns):  # the same bits as resampling gives
        return image[0].clone()
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
