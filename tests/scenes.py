"""Small pictures with label images: rectangles of three colours on grey noise, in ADE20K's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import fastmim
from fastmim.transfer.segment.segment import Result

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 210)}
CLASSES = ["ground", *COLOURS]

NETWORK: dict[str, Any] = {
    "backbone": "convnext_atto",
    "backbone_args": {"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64)},
    "channels": 16,
}
SEGMENT: dict[str, Any] = {
    "img_size": 32,
    "batch_size": 4,
    "steps": 4,
    "lr": 0.1,
    "eval_every": "4 steps",
    "save_every": 2,
    "log_every": 2,
    "num_pictures": 1,
    "num_workers": 0,
    "device": "cpu",
    "precision": "float32",
    "trackers": "none",
    "report": "never",
}


def draw_scenes(root: Path, *, sides: tuple[tuple[int, int], ...] = ((40, 32), (32, 36))) -> Path:
    """Draw 8 training and 4 validation pictures; 0 is no class, a frame of one pixel, and the classes are 1 to 4."""
    generator = np.random.default_rng(0)
    for part, count in (("training", 8), ("validation", 4)):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            width, height = sides[number % len(sides)]
            image = Image.fromarray(generator.integers(90, 160, (height, width, 3)).astype(np.uint8))
            labels = Image.new("L", (width, height), 1)
            for position, colour in enumerate(COLOURS.values()):
                left, top = int(generator.integers(0, width // 2)), int(generator.integers(0, height // 2))
                box = (left, top, left + width // 3, top + height // 3)
                ImageDraw.Draw(image).rectangle(box, fill=colour)
                ImageDraw.Draw(labels).rectangle(box, fill=position + 2)
            ImageDraw.Draw(labels).rectangle((0, 0, width - 1, height - 1), outline=0)
            image.save(root / "images" / part / f"{number}.png")
            labels.save(root / "annotations" / part / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def segment(out: Path, data: Path, **settings: Any) -> Result:
    """Run `fastmim.segment` with small settings."""
    begin = {} if "weights" in settings else NETWORK
    result = fastmim.segment(**(SEGMENT | begin | {"data": str(data), "out": out} | settings))
    assert isinstance(result, Result)
    return result
