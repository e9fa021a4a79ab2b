"""Photographs like a data set's: JPEGs of about 500 x 380 pixels and 100 KB, cut from larger ones; and other files."""

from __future__ import annotations

import contextlib
import io
import random
import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastmim.data.packs import packing
from fastmim.data.sources import Source, open_source
from fastmim.data.sources.samples import open_samples

TARGET_BYTES = 100_000
_QUALITIES = (88, 98)
_LARGE_QUALITY = 90
"""As a camera, it gives 3 MB for 12 megapixels; smaller files, which are decoded sooner, would flatter the ratio."""
_MAX_TRIES = 20
SHORT_SIDE = 256


def cut_corpus(folder: Path, num_images: int, photographs: Sequence[Path] | None = None) -> int:
    """Write JPEGs of 460-540 x 350-410 pixels, each at the quality that brings it nearest to 100 KB.

    Args:
        folder: Where they go.
        num_images: How many to cut.
        photographs: Files to cut them from; grey and small ones are skipped. [default: the built-in photographs]

    Returns:
        The number of photographs that were used.
    """
    generator = random.Random(0)
    loaded = [load_photograph(path) for path in photographs or built_in_photographs()]
    usable = [photograph for photograph in loaded if photograph is not None]
    used = set()
    for number in range(num_images):
        tiles: dict[int, bytes] = {}
        for _ in range(_MAX_TRIES):  # smooth tiles stay small at any quality
            index = generator.randrange(len(usable))
            data = _encode(_cut(usable[index], generator))
            tiles[index] = min(tiles.get(index, data), data, key=_distance)
            if _distance(data) < TARGET_BYTES / 4:
                break
        index = min(tiles, key=lambda index: _distance(tiles[index]))
        (folder / f"{number:04}.jpg").write_bytes(tiles[index])
        used.add(index)
    return len(used)


def make_tiers(folder: Path, into: Path) -> dict[str, Source]:
    """A folder of images, its JPEG pack and its raw pack, by name; the packs are written below `into`."""
    tiers: dict[str, Source] = {"folder": open_source(str(folder), cache_dir=into / "cache")}
    for codec in ("jpeg", "raw"):
        with contextlib.redirect_stdout(io.StringIO()):
            packing.pack(folder, into / codec, codec=codec, short_side=SHORT_SIDE, num_workers=0)
        tiers[f"{codec} pack"] = open_source(str(into / codec))
    return tiers


def make_others(folder: Path, into: Path, *, num_images: int, num_large: int) -> dict[str, Source]:
    """Folders of other files, by their kind: the first images of `folder` as PNG and WebP, and large JPEGs.

    Args:
        folder: From `cut_corpus`.
        into: Where they are written.
        num_images: PNGs and WebPs.
        num_large: JPEGs of 4000 x 3000 pixels.
    """
    pictures = [Image.open(path) for path in sorted(folder.iterdir())[:num_images]]
    generator, photographs = random.Random(0), [p for p in map(load_photograph, built_in_photographs()) if p]
    mosaics = (_mosaic(photographs, generator) for _ in range(num_large))
    found: dict[str, Source] = {}
    for kind, suffix, images in (
        ("4000 x 3000", "jpg", mosaics),
        ("PNG", "png", pictures),
        ("WebP", "webp", pictures),
    ):
        (into / kind).mkdir()
        how: dict[str, Any] = {"quality": _LARGE_QUALITY} if suffix == "jpg" else {}
        for number, image in enumerate(images):
            image.save(into / kind / f"{number:04}.{suffix}", **how)
        found[kind] = open_source(str(into / kind), cache_dir=into / "cache")
    return found


def mean_bytes(source: Source) -> float:
    """The mean size of an image as it is stored."""
    sizes = [
        data.nbytes if isinstance(data, np.ndarray) else len(data) for data in map(source.read, range(len(source)))
    ]
    return statistics.mean(sizes)


def built_in_photographs() -> list[Path]:
    """The photographs of `--data samples`, which scikit-image ships."""
    spec = find_spec("skimage")
    names = {photograph for photograph, _, _ in open_samples().tiles}
    assert spec and spec.submodule_search_locations, "open_samples has read them"
    return sorted(Path(spec.submodule_search_locations[0], "data", name) for name in names)


def load_photograph(path: Path) -> Image.Image | None:
    """An RGB photograph, its shorter side reduced to 1200 pixels; None if it is grey or smaller than a tile."""
    with Image.open(path) as image:
        if image.mode != "RGB" or image.width < 560 or image.height < 420:
            return None
        image.thumbnail((10**6, 1200) if image.width > image.height else (1200, 10**6), Image.Resampling.LANCZOS)
        return image.copy()


def _encode(tile: Image.Image) -> bytes:
    """The JPEG nearest to 100 KB, by bisection over quality."""
    low, high = _QUALITIES
    best = _jpeg(tile, low)
    while low < high:
        middle = (low + high + 1) // 2
        data = _jpeg(tile, middle)
        best = min(best, data, key=_distance)
        low, high = (middle, high) if len(data) < TARGET_BYTES else (low, middle - 1)
    return best


def _jpeg(tile: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    tile.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _cut(photograph: Image.Image, generator: random.Random) -> Image.Image:
    return _crop(photograph, generator.randint(460, 540), generator.randint(350, 410), generator)


def _crop(photograph: Image.Image, width: int, height: int, generator: random.Random) -> Image.Image:
    left, top = (generator.randint(0, room) for room in (photograph.width - width, photograph.height - height))
    return photograph.crop((left, top, left + width, top + height))


def _mosaic(photographs: Sequence[Image.Image], generator: random.Random) -> Image.Image:
    """4000 x 3000 pixels of photographs side by side, which have the detail that an enlargement lacks."""
    whole, (width, height) = Image.new("RGB", (4000, 3000)), (500, 375)
    for left, top in product(range(0, whole.width, width), range(0, whole.height, height)):
        whole.paste(_crop(generator.choice(photographs), width, height, generator), (left, top))
    return whole


def _distance(data: bytes) -> int:
    return abs(len(data) - TARGET_BYTES)
