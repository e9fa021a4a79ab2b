"""A small data set for detection and segmentation: photo cut-outs pasted on photographs, with exact annotations.

    apt-get install tuxpaint-stamps-default plasma-workspace-wallpapers gnome-backgrounds mate-backgrounds
    python benchmarks/compose_scenes.py scenes/ [--train 400 --val 100 --unlabelled 2000 --seed 0]

Writes `scenes/coco` (train2017/, val2017/, annotations/instances_*.json), `scenes/ade` (ADE20K's layout, whose images
are links into `scenes/coco`) and `scenes/unlabelled`, pictures of the training part's kind without annotations. Ten
classes of objects from 16 to 250 pixels, which hide each other; small crowds; cut-outs and photographs of the
validation pictures are in no other. The same packages and seed give the same pictures. The cut-outs are under the
GPL-2 and other licences: compose the set where it is needed, and do not pass it on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage.draw import polygon2mask
from skimage.measure import approximate_polygon, find_contours

from fastmim.bench.corpus import built_in_photographs

STAMPS = Path("/usr/share/tuxpaint/stamps")
CLASSES = {
    "bird": "animals/birds",
    "mammal": "animals/mammals",
    "insect": "animals/insects",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
    "flower": "plants/flowers",
    "house": "town/houses",
    "money": "symbols/money",
    "road sign": "town/roadsigns",
    "vehicle": "vehicles",
}
BACKGROUND = "background"

_SIZES = ((320, 240), (240, 320), (288, 288), (352, 224))  # width, height
_OBJECTS = (2, 7)
_SIDES = (16, 250)  # of an object's longer side in pixels, log-uniform
_CROWD_SHARE, _CROWD = 0.06, (6, 12)
_LEAST_VISIBLE, _LEAST_PIXELS = 0.15, 30  # objects hidden further are left out
_FAITHFUL = 0.95  # overlap with the mask from which polygons stand for it
_PARTS = ("train", "val", "unlabelled")
_VAL_SHARE = 5  # one of so many cut-outs and photographs

Bank = dict[str, list[Image.Image]]


@dataclass
class Object:
    """One annotated object."""

    label: int
    """Position in `CLASSES`, from 0."""
    mask: np.ndarray
    """(H, W) bool, its visible pixels."""
    crowd: bool
    whole: int
    """Its pixels before others hid some."""


def read_stamps(root: Path, *, val: bool) -> Bank:
    """The cut-outs of each class for one part, as RGBA without their empty border, at most 320 pixels wide and high."""
    bank: Bank = {}
    for name, folder in CLASSES.items():
        paths = sorted((root / folder).rglob("*.png"))
        chosen = [path for number, path in enumerate(paths) if (number % _VAL_SHARE == 0) == val]
        images = []
        for path in chosen:
            with Image.open(path) as image:
                cut = image.convert("RGBA")
            cut = cut.crop(cut.getchannel("A").point(lambda value: 255 * (value > 127)).getbbox())
            cut.thumbnail((320, 320), Image.Resampling.LANCZOS)
            images.append(cut)
        if not images:
            raise SystemExit(f"no PNGs in {root / folder}; expected Debian's package tuxpaint-stamps-default")
        bank[name] = images
    return bank


def find_photographs() -> list[Path]:
    """The built-in photographs, and those of Debian's wallpapers, the largest file of each."""
    wallpapers = [
        max(folder.glob("*.[jp][pn]g"), key=lambda path: path.stat().st_size, default=None)
        for folder in sorted(Path("/usr/share/wallpapers").glob("*/contents/images"))
    ]
    more = sorted(Path("/usr/share/backgrounds/mate/nature").glob("*.jpg"))
    more += sorted(Path("/usr/share/backgrounds/gnome").glob("*.webp"))
    return [*built_in_photographs(), *(path for path in wallpapers if path), *more]


def read_photographs(paths: Sequence[Path], *, val: bool) -> list[Image.Image]:
    """The photographs of one part, at most 1000 pixels wide and high."""
    images = []
    for path in (path for number, path in enumerate(paths) if (number % _VAL_SHARE == 0) == val):
        with Image.open(path) as image:
            image.draft("RGB", (1000, 1000))
            small = image.convert("RGB")
        small.thumbnail((1000, 1000), Image.Resampling.LANCZOS)
        if min(small.size) >= 150:
            images.append(small)
    return images


def compose(
    bank: Bank, photographs: Sequence[Image.Image], draw: np.random.Generator
) -> tuple[Image.Image, list[Object]]:
    """Compose one picture."""
    width, height = _SIZES[draw.integers(len(_SIZES))]
    picture = _background(photographs[draw.integers(len(photographs))], width, height, draw)
    names = list(bank)
    objects: list[Object] = []
    for _ in range(int(draw.integers(_OBJECTS[0], _OBJECTS[1] + 1))):
        label = int(draw.integers(len(names)))
        if draw.random() < _CROWD_SHARE:
            masks = _paste_crowd(picture, bank[names[label]], draw)
        else:
            side = math.exp(draw.uniform(math.log(_SIDES[0]), math.log(_SIDES[1])))
            stamp = bank[names[label]][draw.integers(len(bank[names[label]]))]
            masks = [_paste(picture, stamp, side, draw.uniform(0, width), draw.uniform(0, height), draw)]
        mask = np.any(masks, axis=0)
        for other in objects:
            other.mask &= ~mask
        objects.append(Object(label, mask, len(masks) > 1, int(mask.sum())))
    seen = [o for o in objects if o.mask.sum() >= max(_LEAST_PIXELS, _LEAST_VISIBLE * o.whole)]
    return picture, seen


def _background(photograph: Image.Image, width: int, height: int, draw: np.random.Generator) -> Image.Image:
    scale = min(photograph.width / width, photograph.height / height) * draw.uniform(0.5, 1.0)
    box_width, box_height = width * scale, height * scale
    left, top = draw.uniform(0, photograph.width - box_width), draw.uniform(0, photograph.height - box_height)
    box = (left, top, left + box_width, top + box_height)
    return photograph.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _paste(
    picture: Image.Image, stamp: Image.Image, side: float, x: float, y: float, draw: np.random.Generator
) -> np.ndarray:
    """Paste a stamp with its middle at (x, y), turned a little; its pixels as (H, W) bool."""
    scale = side / max(stamp.size)
    size = (max(1, round(stamp.width * scale)), max(1, round(stamp.height * scale)))
    small = stamp.resize(size, Image.Resampling.LANCZOS)
    if draw.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = small.rotate(draw.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    left, top = round(x - small.width / 2), round(y - small.height / 2)
    picture.paste(small, (left, top), small)
    alpha = Image.new("L", picture.size, 0)
    alpha.paste(small.getchannel("A"), (left, top))
    return np.asarray(alpha) > 127


def _paste_crowd(picture: Image.Image, stamps: Sequence[Image.Image], draw: np.random.Generator) -> list[np.ndarray]:
    """Paste several small stamps side by side, which are annotated as one crowd."""
    middle = draw.uniform(0.2, 0.8, 2) * picture.size
    masks = []
    for _ in range(int(draw.integers(_CROWD[0], _CROWD[1] + 1))):
        x, y = middle + draw.normal(0, 25, 2)
        stamp = stamps[draw.integers(len(stamps))]
        masks.append(_paste(picture, stamp, draw.uniform(14, 28), x, y, draw))
    return masks


def label_image(objects: Sequence[Object], height: int, width: int) -> Image.Image:
    """(H, W) numbers of classes: 1 for the background, 2 for the first of `CLASSES`; ADE20K's 0 does not occur."""
    numbers = np.ones((height, width), dtype=np.uint8)
    for item in objects:
        numbers[item.mask] = item.label + 2
    return Image.fromarray(numbers)


def annotation(item: Object, number: int, image: int) -> dict[str, Any]:
    """An object in COCO's form: polygons where they are faithful to the mask, else runs, as for every crowd."""
    rows, columns = np.flatnonzero(item.mask.any(axis=1)), np.flatnonzero(item.mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "image_id": image,
        "category_id": item.label + 1,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(item.mask.sum()),
        "iscrowd": int(item.crowd),
        "segmentation": (None if item.crowd else polygons(item.mask)) or runs(item.mask),
    }


def polygons(mask: np.ndarray) -> list[list[float]] | None:
    """The mask's outlines as x, y, x, y, ...; None if they would not give the mask back (holes, thin parts)."""
    padded = np.pad(mask, 1)
    found, filled = [], np.zeros_like(mask)
    for contour in find_contours(padded.astype(float), 0.5):
        corners = approximate_polygon(contour, tolerance=0.4)[:-1] - 0.5  # the edge of pixel 0 is at 0
        if len(corners) >= 3:
            filled |= polygon2mask(mask.shape, corners - 0.5)
            found.append([round(float(value), 2) for row, column in corners for value in (column, row)])
    overlap = (filled & mask).sum() / max(1, (filled | mask).sum())
    return found if overlap >= _FAITHFUL else None


def runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths, down the columns, beginning with zeros."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0).tolist()}


def write_part(out: Path, part: str, number: int, bank: Bank, photographs: Sequence[Image.Image], *, seed: int) -> None:
    """Write the pictures and annotations of "train" or "val" in both formats."""
    ade = "training" if part == "train" else "validation"
    folders = [
        out / f"coco/{part}2017",
        out / "coco/annotations",
        out / "ade/images" / ade,
        out / "ade/annotations" / ade,
    ]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(number):
        picture, objects = compose(bank, photographs, np.random.default_rng([seed, _PARTS.index(part), index]))
        name = f"{index:06d}"
        picture.save(folders[0] / f"{name}.jpg", quality=90)
        link = folders[2] / f"{name}.jpg"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("../../../coco") / f"{part}2017" / f"{name}.jpg")
        label_image(objects, picture.height, picture.width).save(folders[3] / f"{name}.png")
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": picture.height, "width": picture.width})
        annotations += [annotation(item, len(annotations) + n + 1, index + 1) for n, item in enumerate(objects)]
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folders[1] / f"instances_{part}2017.json").write_text(json.dumps(content))
    (out / "ade/classes.txt").write_text("\n".join([BACKGROUND, *CLASSES]) + "\n")
    print(f"{part}: {number} pictures, {len(annotations)} objects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--unlabelled", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paths = find_photographs()
    for part, number in (("train", options.train), ("val", options.val)):
        val = part == "val"
        bank, photographs = read_stamps(STAMPS, val=val), read_photographs(paths, val=val)
        write_part(options.out, part, number, bank, photographs, seed=options.seed)
        if not val:
            folder = options.out / "unlabelled"
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(options.unlabelled):
                draw = np.random.default_rng([options.seed, _PARTS.index("unlabelled"), index])
                compose(bank, photographs, draw)[0].save(folder / f"{index:06d}.jpg", quality=90)
            print(f"unlabelled: {options.unlabelled} pictures")


if __name__ == "__main__":
    main()
