"""Pictures to try `fastmim adapt` without a network: `python examples/two_sets.py tiles`.

Cuts tiles of 64 pixels from the photographs in scikit-image's wheel, large ones made smaller, and writes them to three
folders: `public`, of one half of the photographs, for a network that plays the public model; `own`, of the other half,
without labels; and `labelled`, of that half too, in folders named after the photographs, with their left parts in
`train` and their right parts in `val`. No two tiles overlap, and none is in two folders.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from fastmim.data.sources import open_source

SIDE, LARGEST = 64, 640


def main(out: Path) -> None:
    samples = open_source("samples")
    names = list(dict.fromkeys(samples.name(index).partition("#")[0] for index in range(len(samples))))
    folder = Path(skimage.__file__).parent / "data"
    for number, name in enumerate(names):
        file = Path(name).name
        with Image.open(folder / file) as image:
            image.thumbnail((LARGEST, LARGEST))
            pixels = np.array(image.convert("RGB"))
        rows, columns = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
        for row in range(rows):
            for column in range(columns):
                if number % 2 == 0:
                    part = Path("public")
                elif (row + column) % 2 == 0:
                    part = Path("own")
                else:
                    part = Path("labelled", "train" if column < columns / 2 else "val", Path(file).stem)
                (out / part).mkdir(parents=True, exist_ok=True)
                tile = pixels[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
                Image.fromarray(tile).save(out / part / f"{Path(file).stem}_{row:02d}_{column:02d}.png")
    for part in ("public", "own", "labelled"):
        print(f"{out / part}: {sum(1 for _ in (out / part).rglob('*.png')):,} tiles")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tiles"))
