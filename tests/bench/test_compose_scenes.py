"""Composed scenes: the same from the same seed, and both annotation formats say what the pictures show."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fastmim.data.label_images import open_scenes

SCRIPT = Path(__file__).parents[2] / "benchmarks/compose_scenes.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("compose_scenes", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["compose_scenes"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def stamp(number: int) -> Image.Image:
    """A ring: a shape with a hole, which polygons cannot give back."""
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((2, 2, 57, 37), outline=(9 * number, 250 - 9 * number, 40, 255), width=4 + number)
    return image


def _unrun(segmentation: dict[str, Any]) -> np.ndarray:
    """COCO's run lengths as a mask."""
    height, width = segmentation["size"]
    values = np.arange(len(segmentation["counts"])) % 2
    return np.repeat(values, segmentation["counts"]).reshape(width, height).T.astype(bool)


def test_both_formats_say_what_the_pictures_show(script: Any, tmp_path: Path) -> None:
    bank = {name: [stamp(number)] for number, name in enumerate(script.CLASSES)}
    photographs = [Image.new("RGB", (400, 300), (90, 120, 150))]
    for folder in ("one", "two"):
        for part, count in (("train", 12), ("val", 2)):
            script.write_part(tmp_path / folder, part, count, bank, photographs, seed=3)
    files = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*.*g"))]
    assert len(files) == 14 * 3
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)

    scenes = open_scenes(str(tmp_path / "one/ade"), None)
    assert scenes.classes == ["background", *script.CLASSES] and (len(scenes.train), len(scenes.val)) == (12, 2)
    content = json.loads((tmp_path / "one/coco/annotations/instances_train2017.json").read_text())
    assert [c["id"] for c in content["categories"]] == list(range(1, 11))
    kinds = {(a["iscrowd"], isinstance(a["segmentation"], list)) for a in content["annotations"]}
    assert {(1, False), (0, False)} <= kinds
    for image in content["images"]:
        labels = scenes.train.read_label(image["id"] - 1)
        assert labels.shape == (image["height"], image["width"])
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        for item in own:
            if isinstance(item["segmentation"], dict):
                mask = _unrun(item["segmentation"])
                assert (labels[mask] == item["category_id"]).all() and mask.sum() == item["area"]
                left, top, width, height = item["bbox"]
                assert mask[top : top + height, left : left + width].sum() == item["area"]
        assert (labels > 0).sum() == sum(item["area"] for item in own)


def test_polygons_stand_for_masks_that_they_give_back(script: Any) -> None:
    mask = np.zeros((40, 50), dtype=bool)
    mask[5:20, 10:30] = True
    [outline] = script.polygons(mask)
    points = np.array(outline).reshape(-1, 2)
    assert (points.min(0) >= (9.9, 4.9)).all() and (points.max(0) <= (30.1, 20.1)).all()
    area = 0.5 * abs(np.dot(points[:, 0], np.roll(points[:, 1], 1)) - np.dot(points[:, 1], np.roll(points[:, 0], 1)))
    assert area == pytest.approx(300, rel=0.02)
    mask[10:15, 15:25] = False
    assert script.polygons(mask) is None
    assert np.array_equal(_unrun(script.runs(mask)), mask)
    assert np.array_equal(_unrun(script.runs(~mask)), ~mask)


def test_missing_cut_outs_are_named(script: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no PNGs in .*; expected Debian's package tuxpaint-stamps-default"):
        script.read_stamps(tmp_path, val=False)
