"""Small pictures in COCO's layout: squares, discs and triangles of a colour each, on grey noise, with outlines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"square": (200, 40, 40), "disc": (40, 180, 60), "triangle": (50, 70, 210)}
NUMBERS = {"square": 1, "disc": 3, "triangle": 7}
"""As in COCO, the numbers of the categories have gaps."""


def draw_coco(
    root: Path, *, counts: tuple[int, int] = (8, 4), sides: tuple[tuple[int, int], ...] = ((64, 48), (56, 64))
) -> Path:
    """Draw pictures with one to three shapes each, for training and for validation; the first has a crowd besides."""
    for part, count in zip(("train", "val"), counts, strict=True):
        generator = np.random.default_rng(count)
        folder = root / f"{part}2017"
        folder.mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            width, height = sides[number % len(sides)]
            picture = Image.fromarray(generator.integers(100, 150, (height, width, 3)).astype(np.uint8))
            images.append({"id": number + 10, "file_name": f"{number}.png", "height": height, "width": width})
            for place in range(1 + number % 3):
                found = _draw(picture, (number + place) % 3, place, generator)
                annotations.append(found | {"id": len(annotations) + 1, "image_id": number + 10})
            if not number:
                annotations.append(_crowd(picture) | {"id": len(annotations) + 1, "image_id": number + 10})
            picture.save(folder / f"{number}.png")
        content = {"images": images, "annotations": annotations, "categories": categories()}
        write(root, part, content)
    return root


def categories() -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for name, number in NUMBERS.items()]


def file_of(root: Path, part: str = "train") -> Path:
    return root / "annotations" / f"instances_{part}2017.json"


def read(root: Path, part: str = "train") -> Any:
    return json.loads(file_of(root, part).read_text())


def write(root: Path, part: str, content: Any) -> None:
    file_of(root, part).parent.mkdir(exist_ok=True)
    file_of(root, part).write_text(json.dumps(content))


def _draw(picture: Image.Image, kind: int, place: int, generator: np.random.Generator) -> dict[str, Any]:
    """Draw a shape in one of the picture's quarters and return its annotation."""
    name, draw = list(COLOURS)[kind], ImageDraw.Draw(picture)
    shorter = min(picture.size)
    side = int(generator.integers(round(0.29 * shorter), round(0.45 * shorter)))
    left = int(generator.integers(1, picture.width // 2 - side)) + (place % 2) * (picture.width // 2)
    top = int(generator.integers(1, picture.height // 2 - side + 1)) + (place // 2) * (picture.height // 2)
    right, bottom = left + side, top + side
    if name == "disc":
        draw.ellipse((left, top, right - 1, bottom - 1), fill=COLOURS[name])
        angles = np.linspace(0, 2 * np.pi, 17)[:-1]
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * side / 2 + (left + side / 2, top + side / 2)
    else:
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        corners = np.array(points if name == "square" else [points[0], points[2], points[3]], dtype=float)
        draw.polygon([(x, y) for x, y in (corners - (corners > (left, top))).tolist()], fill=COLOURS[name])
    return {
        "category_id": NUMBERS[name],
        "bbox": [left, top, side, side],
        "area": side * side * {"square": 1.0, "disc": np.pi / 4, "triangle": 0.5}[name],
        "iscrowd": 0,
        "segmentation": [corners.ravel().tolist()],
    }


def _crowd(picture: Image.Image) -> dict[str, Any]:
    """A crowd of discs along the lower edge: run lengths, as in COCO."""
    mask = np.zeros((picture.height, picture.width), dtype=bool)
    mask[-6:, :20] = True
    picture.paste(COLOURS["disc"], (0, picture.height - 6, 20, picture.height))
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    runs = {"size": list(mask.shape), "counts": np.diff(edges, prepend=0).tolist()}
    box = [0, picture.height - 6, 20, 6]
    return {"category_id": NUMBERS["disc"], "bbox": box, "area": 120.0, "iscrowd": 1, "segmentation": runs}
