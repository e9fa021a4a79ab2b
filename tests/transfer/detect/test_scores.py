"""COCO's scores are those of pycocotools on the same predictions."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import shapes
from fastmim.transfer.detect.coco import Scenes, open_scenes
from fastmim.transfer.detect.outlines import from_mask, to_mask
from fastmim.transfer.detect.scores import NAMES, score


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    sides = ((64, 48), (150, 140), (260, 300))
    return open_scenes(str(shapes.draw_coco(tmp_path_factory.mktemp("s") / "coco", counts=(18, 1), sides=sides))).train


def guesses(scenes: Scenes, *, seed: int = 0) -> list[dict[str, Any]]:
    """Boxes and masks near the objects, moved by some pixels, some of another class, some twice, some missing."""
    draw, found = np.random.default_rng(seed), []
    for index in range(len(scenes)):
        height, width = scenes.sizes[index].tolist()
        for number in scenes.objects_of(index):
            mask = to_mask(scenes.objects.outlines[number], height, width)
            for _ in range(int(draw.integers(0, 4))):
                down, right = draw.integers(-4, 5, 2).tolist()
                moved = np.roll(mask, (down, right), axis=(0, 1))
                left, top, *sides = scenes.objects.boxes[number].tolist()
                label = scenes.objects.labels[number] if draw.random() < 0.8 else draw.integers(3)
                found.append(
                    {
                        "image_id": scenes.ids[index],
                        "category_id": scenes.categories[label],
                        "bbox": [left + right, top + down, *sides],
                        "score": float(draw.random()),
                        "segmentation": from_mask(moved),
                    }
                )
    return found


def reference(truth: dict[str, Any], predictions: list[dict[str, Any]], kind: str) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = truth
        expected.createIndex()
        left_out = "segmentation" if kind == "bbox" else "bbox"
        found = expected.loadRes([{n: v for n, v in p.items() if n != left_out} for p in predictions])
        evaluation = COCOeval(expected, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_all_twelve_numbers_and_each_class(scenes: Scenes, kind: str) -> None:
    truth, predictions = scenes.ground_truth(range(len(scenes))), guesses(scenes)
    assert any(a["iscrowd"] for a in truth["annotations"])
    found = score(truth, predictions, masks=True)
    expected = reference(truth, predictions, {"box": "bbox", "mask": "segm"}[kind])
    own = [found.overall[kind][name] for name in NAMES]
    assert own == pytest.approx([v if v > -1 else None for v in expected.stats], abs=1e-6)
    assert 0.05 < own[0] < 0.95 and len(set(own)) > 6  # neither trivial nor all the same
    precision = expected.eval["precision"][:, :, :, 0, -1]
    for position, name in enumerate(scenes.classes):
        assert found.per_class[name][kind] == pytest.approx(precision[:, :, position].mean(), abs=1e-6)
    assert found.num_images == len(scenes)


def test_no_predictions_and_classes_without_objects(scenes: Scenes) -> None:
    truth = scenes.ground_truth([0])  # a square and a crowd of discs
    found = score(truth, [], masks=False)
    assert found.overall["box"]["AP"] == 0.0 and found.overall["box"]["AP_large"] is None
    assert found.per_class == {"square": {"box": 0.0}, "disc": {"box": None}, "triangle": {"box": None}}
    assert found.metrics() == {"val_box_ap": 0.0, "val_box_ap50": 0.0, "val_box_ap75": 0.0}
    assert found.describe() == "box AP 0.0% (AP50 0.0%)" and found.to_mapping()["images"] == 1


def test_the_objects_themselves_score_everything(scenes: Scenes) -> None:
    truth = scenes.ground_truth(range(len(scenes)))
    perfect = [
        {name: a[name] for name in ("image_id", "category_id", "bbox")} | {"score": 1.0}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    assert score(truth, perfect, masks=False).overall["box"]["AP"] == pytest.approx(1.0)
