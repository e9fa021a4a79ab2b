"""Divide Fashion-MNIST into classes that a public model knows, and others that are one's own.

    python benchmarks/halves.py runs/halves

`public` has trousers, sandals, sneakers, bags and boots; `own` has T-shirts, pullovers, dresses, coats and shirts,
which are harder to tell apart. Each has 30,000 training images in `train` and 5,000 validation images in `val`, in
folders named after the classes; `probe` has the same validation images, one in five of them for training.
Needs the data (Debian: dataset-fashion-mnist).
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

FILES = Path("/usr/share/datasets/fashion-mnist")
PARTS = {"train": "train", "val": "t10k"}
CLASSES = {
    "public": {1: "trouser", 5: "sandal", 7: "sneaker", 8: "bag", 9: "boot"},
    "own": {0: "t-shirt", 2: "pullover", 3: "dress", 4: "coat", 6: "shirt"},
}


def read(name: str, *, start: int) -> np.ndarray:
    """The uint8 values of a gzipped IDX file behind a header of `start` bytes."""
    return np.frombuffer(gzip.decompress((FILES / name).read_bytes()), dtype=np.uint8, offset=start)


def save(image: Image.Image, file: Path) -> None:
    """Save an image, in a folder that need not exist."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    for part, prefix in PARTS.items():
        labels = read(f"{prefix}-labels-idx1-ubyte.gz", start=8)
        images = read(f"{prefix}-images-idx3-ubyte.gz", start=16).reshape(-1, 28, 28)
        for half, classes in CLASSES.items():
            for label, name in classes.items():
                for count, index in enumerate(np.flatnonzero(labels == label)):
                    image = Image.fromarray(images[index])
                    save(image, out / half / part / name / f"{index:05}.png")
                    if part == "val":
                        save(image, out / half / "probe" / ("val" if count % 5 else "train") / name / f"{index:05}.png")
            print(f"{out / half / part}: {np.isin(labels, list(classes)).sum():,} images of {len(classes)} classes")


if __name__ == "__main__":
    main()
