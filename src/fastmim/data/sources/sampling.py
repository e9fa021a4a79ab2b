"""What a sample of a source's images shows: the range of greys of more than 8 bits, and what decoding leaves out."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from fastmim.data import settings
from fastmim.data.greys import Decoding, is_deep
from fastmim.data.pillow import identified
from fastmim.data.settings import ImageConfig
from fastmim.data.sources.files import Files
from fastmim.data.sources.huggingface import Rows
from fastmim.data.sources.objects import Items
from fastmim.data.sources.pack import Packed
from fastmim.data.sources.source import Source
from fastmim.data.sources.tar_shards import Shards
from fastmim.data.unreadable import UNREADABLE

NUM_SAMPLED = 64
"""Images that are looked at, evenly spread over those that are not JPEGs."""

_TAILS = (0.1, 99.9)
"""The percentiles of a sample's pixels that become black and white: a few hot pixels do not decide."""

_SIDE = 256  # of the grid of pixels that is taken of an image
_JPEG = (b".jpg", b".jpeg", b".jpe", b".jfif")


def decoded_as(source: Source, config: ImageConfig, *, inherited: str | None = None) -> Source:
    """The source, with the decoding that the settings ask for, and with remarks on what a sample of it shows.

    Args:
        source: As it was found, without remarks but for files that were passed over.
        config: The range of its greys, and the largest image.
        inherited: The range of the weights that its images are for, which `auto` takes, unless it is "8bit".
    """
    if isinstance(source, Packed):  # its images have 8 bits; their range is on record
        decoding = dataclasses.replace(source.decoding, max_pixels=config.max_pixels)
        return dataclasses.replace(source, decoding=decoding)
    sample = _Sample()
    for image in _images(source, config.max_pixels):
        with suppress(*UNREADABLE):
            sample.add(image, measured=config.range == "auto")
    if config.range != "auto":
        levels, why = settings.levels(config.range), "--range"
    elif inherited not in (None, "8bit"):
        levels, why = settings.levels(str(inherited)), "as for the weights"
    else:
        levels, why = sample.levels()
    decoding, remarks = Decoding(levels, config.max_pixels), tuple(sample.describe(levels, why))
    return dataclasses.replace(source, decoding=decoding, remarks=source.remarks + remarks)  # type: ignore[type-var]


def _images(source: Source, max_pixels: int) -> Iterator[Image.Image]:
    """The images of the sample that can be read; only their headers have been."""
    if isinstance(source, Files | Shards):
        names = source.paths if isinstance(source, Files) else source.members
        positions: Sequence[int] | np.ndarray = np.flatnonzero(~names.ending_in(_JPEG))
    else:
        positions = range(len(source) if isinstance(source, Rows | Items) else 0)
    spread = np.linspace(0, len(positions) - 1, min(NUM_SAMPLED, len(positions))).round().astype(np.int64)
    for index in (int(positions[place]) for place in spread.tolist()):
        with suppress(*UNREADABLE):
            data = source.image(index) if isinstance(source, Items) else source.read(index)
            if isinstance(data, Image.Image):
                yield data
            elif isinstance(data, bytes) and not data.startswith(b"\xff\xd8"):
                with identified(data, max_pixels) as image:
                    yield image


@dataclass
class _Sample:
    """What has been seen so far."""

    num: int = 0
    greys: list[np.ndarray] = field(default_factory=list)
    """Of each image of more than 8 bits, finite ones on a grid."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Of those images, such as "16-bit PNG"."""
    whites: set[int | None] = field(default_factory=set)
    """Those that their files declare."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What decoding leaves out of how many images."""

    def add(self, image: Image.Image, *, measured: bool) -> None:
        """Look at an image, and decode it if its greys are to be measured."""
        self.num += 1
        self.left_out[_FRAMES] += bool(getattr(image, "is_animated", False))
        self.left_out[_CHANNELS] += _num_channels(image) > len(image.getbands())
        if not is_deep(image):
            self.left_out[_BITS] += any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
            return
        self.kinds[_kind(image)] += 1
        if measured:
            self.whites.add(_declared_white(image))
            grid = image.resize((min(_SIDE, image.width), min(_SIDE, image.height)), Image.Resampling.NEAREST)
            values = np.asarray(grid)
            self.greys.append(values[np.isfinite(values)])

    def levels(self) -> tuple[tuple[float, float] | None, str]:
        """The greys that become black and white, None if no image has more than 8 bits; and where they come from."""
        measured = [values for values in self.greys if values.size]
        if not measured:
            return None, ""
        if len(self.whites) == 1 and (white := next(iter(self.whites))):
            return (0.0, float(white)), "as the files declare"
        low, high = np.percentile(np.concatenate(measured).astype(np.float64), _TAILS).tolist()
        if all(values.dtype.kind in "iu" for values in measured):
            low, high = math.floor(low), math.ceil(high)
        low, high = float(f"{low:.6g}"), float(f"{high:.6g}")
        if low >= high:  # all of one grey
            low, high = low - 1, low + 1
        return (low, high), f"{_TAILS[0]:g} and {_TAILS[1]:g} % of the pixels of {len(measured)} images"

    def describe(self, levels: tuple[float, float] | None, why: str) -> Iterator[str]:
        """Lines for a plan."""
        if levels and self.kinds:
            kinds = ", ".join(kind for kind, _ in self.kinds.most_common())
            yield f"range     {levels[0]:,g} to {levels[1]:,g} of {kinds} become black to white ({why})"
            if num_poor := sum(_is_poor(values, *levels) for values in self.greys):
                yield (
                    f"note      {num_poor} of {len(self.greys)} such images lie outside of this range, or within less "
                    f"than a sixteenth of it: give --range, or train on each kind apart"
                )
        for what, num in self.left_out.items():
            if num:
                yield f"note      {num} of {self.num} images looked at have {what}"


_FRAMES = "several pages or frames: the first one is used"
_CHANNELS = "channels besides grey, red, green, blue and alpha, which are left out"
_BITS = "colours of 16 bits: the upper 8 are used"


def _is_poor(values: np.ndarray, low: float, high: float) -> bool:
    """Whether an image of several greys has few of them within the levels, or many pixels outside."""
    first, last = np.percentile(values, _TAILS) if values.size else (0, 0)
    outside = ((values < low) | (values > high)).mean() if values.size else 0
    return bool(first < last and (min(last, high) - max(first, low) < (high - low) / 16 or outside > 0.05))


def _kind(image: Image.Image) -> str:
    bits = 16 if image.mode.startswith("I;16") or image.format in ("PNG", "PPM") else 32
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (bits,))[0]  # type: ignore[attr-defined]
    return f"float {image.format}" if image.mode == "F" else f"{bits}-bit {image.format}"


def _declared_white(image: Image.Image) -> int | None:
    """The white that a file declares by an unusual number of bits; 16 bits may hold anything."""
    bits = image.tag_v2.get(258, (16,))[0] if image.format == "TIFF" else 16  # type: ignore[attr-defined]
    if 8 < bits < 16:
        return (1 << bits) - 1
    # Pillow scales a PGM's greys from the maximum that it declares.
    return 65535 if image.format == "PPM" and any(tile.codec_name == "ppm" for tile in image.tile) else None  # type: ignore[attr-defined]


def _num_channels(image: Image.Image) -> int:
    """As the file has them, as far as Pillow tells."""
    return image.tag_v2.get(277, 1) if image.format == "TIFF" else 0  # type: ignore[attr-defined]
