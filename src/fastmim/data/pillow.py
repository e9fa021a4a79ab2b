"""Images of the formats that Pillow reads: which of them are let in, and opening one within the limits."""

from __future__ import annotations

import ctypes
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache

from PIL import Image, UnidentifiedImageError

from fastmim.data.jpeg import ORIENTATION_TAG, ORIENTATIONS, count_scans
from fastmim.data.limits import MAX_INSIDE, MAX_PIXELS, check_opened, check_pixels, more_than
from fastmim.data.unreadable import BadImage, one_line

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what Pillow logs of a damaged file

# An allow-list, so that a new plugin is not trusted unseen. Left out are documents, video, data containers, formats
# that Pillow only identifies, EPS, which runs Ghostscript, and IPTC, which opens the file inside it in any format.
_FORMATS = {
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO", "IM", "IMT",
    "JPEG", "JPEG2000", "MCIDAS", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN",
    "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB",
}  # fmt: skip

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
    limit = min(max_pixels, MAX_INSIDE) if data.startswith(_WITH_IMAGES_INSIDE) else max_pixels
    try:
        with only_images(limit), closing(Image.open(io.BytesIO(data), formats=image_formats())) as image:
            check_pixels(image.height, image.width, limit)
            has_scans = data.startswith((b"\xff\xd8", b"BLP"))
            check_opened(image, data, num_scans=count_scans(data, image.height * image.width) if has_scans else 0)
            image.load()
            yield image, _orientation(image)
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(f"the image has {more_than(limit)}") from None
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


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # corrupted EXIF does not affect the pixels
        return 1
    return orientation if orientation in ORIENTATIONS else 1
