"""The built-in images: overlapping tiles of the photographs in scikit-image's wheel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from fastmim.data.pixels import Box
from fastmim.data.sources.source import ByPosition
from fastmim.errors import RequestError, RunError, shown

SCHEME = "samples"
"""The origin of these images: `samples`, or `samples://NAME,NAME` for some of the photographs."""

# Photographs and micrographs, grey and colour; no drawings, logos, test charts or near-duplicates.
_PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
    "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
_MIN_SIDE = 192


@dataclass(frozen=True, eq=False)
class Samples(ByPosition):
    """Tiles of photographs, each photograph decoded once per process at first use.

    A tile is a square of 192 pixels a side, or of a quarter of the photograph's shorter side if that is larger;
    neighbours overlap by half or slightly more, so that the tiles reach the photograph's edges.
    """

    tiles: tuple[tuple[str, int, Box], ...]
    """(photograph, number of the tile in it, box)."""

    def __len__(self) -> int:
        return len(self.tiles)

    def read(self, index: int) -> np.ndarray:
        photograph, _, box = self.tiles[index]
        pixels = _photograph(photograph)
        return pixels[box.top : box.top + box.height, box.left : box.left + box.width]

    def name(self, index: int) -> str:
        photograph, number, _ = self.tiles[index]
        return f"samples/{photograph}#{number}"


def open_samples(wanted: str = "") -> Samples:
    """Tile photographs.

    Args:
        wanted: The photographs to tile, by name without suffix and with commas between them; all if empty.

    Raises:
        RequestError: there is no such photograph.
        RunError: scikit-image is missing, or was installed without its photographs.
    """
    tiles = []
    for photograph in _chosen(wanted):
        try:
            with Image.open(_folder() / photograph) as image:
                boxes = _boxes(image.height, image.width)
        except OSError as error:
            raise RunError(
                f"the built-in photograph {photograph} cannot be read ({error.strerror or error}): "
                "reinstall scikit-image from its wheel, or give --data a folder of images"
            ) from None
        tiles += [(photograph, number, box) for number, box in enumerate(boxes)]
    return Samples(tuple(tiles), origin=f"{SCHEME}://{wanted}" if wanted else SCHEME)


def _chosen(wanted: str) -> list[str]:
    """The files of the photographs that are wanted, in the order in which they are named."""
    if not wanted:
        return list(_PHOTOGRAPHS)
    known = {Path(file).stem: file for file in _PHOTOGRAPHS}
    names = list(dict.fromkeys(wanted.split(",")))
    for name in names:
        if name not in known:
            raise RequestError(
                f"--data {SCHEME}://...: {shown(name)} is no built-in photograph; expected some of {','.join(known)}"
            )
    return [known[name] for name in names]


def _folder() -> Path:
    # Located without an import: scikit-image's data module takes a second to load.
    spec = find_spec("skimage")
    return Path(spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else "skimage", "data")


@cache
def _photograph(name: str) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3)."""
    with Image.open(_folder() / name) as image:
        return np.array(image)


def _boxes(height: int, width: int) -> list[Box]:
    side = max(_MIN_SIDE, min(height, width) // 4)
    rows, columns = _starts(height, side), _starts(width, side)
    return [Box(top, left, min(side, height), min(side, width)) for top in rows for left in columns]


def _starts(length: int, side: int) -> list[int]:
    """Evenly spaced starts of windows that overlap by half or more and cover the length."""
    room = max(length - side, 0)
    num_steps = -(-room // (side // 2))
    return [round(step * room / max(num_steps, 1)) for step in range(num_steps + 1)]
