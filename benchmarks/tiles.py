"""Cut a labelled set of colour images from desktop wallpapers, for studies beyond Fashion-MNIST.

    python benchmarks/tiles.py runs/tiles
    python benchmarks/tiles.py runs/tile-halves --halves

The class of a tile of 96 pixels is the photograph (or painting) that it is cut from. Training tiles come from the left
three quarters, validation tiles from the right quarter, so that none overlap. `wallpapers.py` names the packages.
With `--halves`, every second class goes to `public`, which a network may be trained on with labels to play the public
model, and the others to `own`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image

import wallpapers
from fastmim.bench.corpus import load_photograph

SIDE, SHORT_SIDE = 96, 1200
SPLIT = 0.75
"""Share of a photograph's width for training."""


def cut(photograph: Image.Image, folder: Path, generator: random.Random, *, num_train: int, num_val: int) -> None:
    """Write the tiles of a photograph as `train/<name>/N.png` and `val/<name>/N.png`."""
    border = int(SPLIT * photograph.width)
    for part, left, right, number in (
        ("train", 0, border, num_train),
        ("val", border, photograph.width, num_val),
    ):
        into = folder.parent / part / folder.name
        into.mkdir(parents=True)
        for index in range(number):
            x, y = generator.randint(left, right - SIDE), generator.randint(0, photograph.height - SIDE)
            photograph.crop((x, y, x + SIDE, y + SIDE)).save(into / f"{index:04}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--train", type=int, default=400, help="training tiles of each photograph")
    parser.add_argument("--val", type=int, default=60, help="validation tiles of each photograph")
    parser.add_argument("--halves", action="store_true", help="divide the classes into `public` and `own`")
    options = parser.parse_args()
    generator, number = random.Random(0), 0
    for path in wallpapers.photographs():
        photograph = load_photograph(path)
        if photograph is not None and min(photograph.size) == SHORT_SIDE and photograph.width > SHORT_SIDE:
            number += 1
            out = options.out / ("own", "public")[number % 2] if options.halves else options.out
            cut(photograph, out / f"{number:02}", generator, num_train=options.train, num_val=options.val)
    print(f"{options.out}: {number} classes, {options.train} training and {options.val} validation tiles of each")


if __name__ == "__main__":
    main()
