"""Images of the formats that Pillow reads: which of them are let in, and opening one within the limits."""

from __future__ import annotations

import ctypes
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from fastmim.data.jpeg import ORIENTATION_TAG, ORIENTATIONS, count_scans
from fastmim.data.limits import MAX_INSIDE, check_opened, check_pixels, more_than
from fastmim.data.png import inflated
from fastmim.data.settings import MAX_PIXELS
from fastmim.data.unreadable import BadImage, one_line

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what Pillow logs of a damaged file

# An allow-list, so that a new plugin is not trusted unseen. Left out are documents, video, data containers, formats
# that Pillow only identifies, EPS, which runs Ghostscript, and IPTC, which opens the file inside it in any format.
_FORMATS = {
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO", "IM", "IMT",
    "JPEG", "JPEG2000", "MCIDAS", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN",
    "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB",
}  # fmt: skip

_SAMPLES = {1: "integers", 2: "signed integers", 3: "floats"}  # TIFF 6.0, SampleFormat

# Windows and Apple icons and textures hold images of other formats; the first is decoded when it is opened.
_WITH_IMAGES_INSIDE = (b"\0\0\1\0", b"icns", b"BLP")


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


@contextmanager
def opened(data: bytes, max_pixels: int) -> Iterator[tuple[Image.Image, int]]:
    """Decode an image in the frame of the file and yield it, with its EXIF orientation, while the block runs.

    Raises:
        BadImage: The data is not an image, is corrupted, or is too large; or the block raises something.
    """
    with identified(inflated(data, max_pixels), max_pixels) as image:
        image.load()
        yield image, orientation_of(image)


@contextmanager
def identified(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Yield an image whose header has been read and checked, while the block runs; its `load` decodes it.

    Raises:
        BadImage: As `opened`.
    """
    is_container = data.startswith(_WITH_IMAGES_INSIDE)
    limit = min(max_pixels, MAX_INSIDE) if is_container else max_pixels
    try:
        with only_images(limit), closing(Image.open(io.BytesIO(data), formats=image_formats())) as image:
            check_pixels(image.height, image.width, limit, fixed=is_container)
            has_scans = data.startswith((b"\xff\xd8", b"BLP"))
            num_scans = count_scans(data, image.height * image.width, max_pixels) if has_scans else 0
            check_opened(image, data, num_scans=num_scans, max_pixels=max_pixels)
            yield image
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = None if is_container else re.search(r"\((\d+) pixels\)", str(error))
        raise BadImage(f"the image has {more_than(limit, int(size[1]) if size else 0)}") from None
    except UnidentifiedImageError:
        raise BadImage(_unknown_tiff(data) or f"not an image: {_start(data)}") from None
    except Exception as error:
        # Pillow's plugins raise anything on corrupted files: OSError, SyntaxError, struct.error, KeyError ...
        raise BadImage(one_line(error)) from None


def _start(data: bytes) -> str:
    return f"begins with {data[:16]!r}" if data else "the file is empty"


def _unknown_tiff(data: bytes) -> str:
    """What a TIFF holds that Pillow does not read; "" for any other file, or if even that cannot be told."""
    if not data.startswith((b"II*\0", b"MM\0*")):
        return ""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        with warnings.catch_warnings(action="ignore"):  # about damaged files
            tags.load(file)
        num_channels, bits = int(tags.get(277, 1)), int(tags.get(258, (1,))[0])
        kind = _SAMPLES.get(tags.get(339, (1,))[0], "samples")
    except Exception:  # as when Pillow reads it
        return ""
    return (
        f"a TIFF of {num_channels} channel{'s'[: num_channels != 1]} of {bits}-bit {kind}; expected grey, "
        f"or RGB of 8 or 16 bits, with or without alpha: convert it"
    )


@contextmanager
def only_images(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Restrict Pillow to `image_formats` and to images of at most `max_pixels`, inside containers too, and silence it.

    This changes Pillow's global state while the block runs.
    """
    formats, before = list(image_formats()), (Image.ID[:], Image.MAX_IMAGE_PIXELS)
    Image.ID[:], Image.MAX_IMAGE_PIXELS = formats, max_pixels
    handle_tiff_errors = _tiff_error_handling()
    printing = handle_tiff_errors(None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.ID[:], Image.MAX_IMAGE_PIXELS = before
        handle_tiff_errors(printing)


@cache
def _tiff_error_handling() -> Callable[[int | None], int | None]:
    """libtiff's function that sets what handles errors and returns what did; None is nothing, else they are printed.

    Pillow reports them too, as exceptions, but libtiff writes to standard error what a file made it say.
    """
    try:
        function = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler  # type: ignore[attr-defined]
    except (AttributeError, OSError, TypeError):  # linked in another way
        return lambda handler: handler
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
    return function


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, of an image that has been decoded, or has nothing behind its pixels."""
    try:
        orientation = Image.Image.getexif(image).get(ORIENTATION_TAG, 1)  # a PNG's own would decode it
    except Exception:  # corrupted EXIF does not affect the pixels
        return 1
    return orientation if orientation in ORIENTATIONS else 1
