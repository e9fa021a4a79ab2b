"""COCO's twelve scores and the average precision of each class, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

NAMES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""The scores in COCO's order; small and large objects are those of less and more than 32^2 and 96^2 pixels."""
_KINDS = {"bbox": "box", "segm": "mask"}


@dataclass(frozen=True)
class Scores:
    """How well predictions match the objects of a set of images."""

    overall: dict[str, dict[str, float | None]]
    """"box", and "mask" where there are any, -> name -> 0 to 1, or None if no object has that size."""
    per_class: dict[str, dict[str, float | None]]
    """Class -> "box" and "mask" -> AP; None for classes without an object."""
    num_images: int

    def metrics(self) -> dict[str, float]:
        """The most usual scores, as names of metrics."""
        names = {"AP": "ap", "AP50": "ap50", "AP75": "ap75"}
        return {
            f"val_{kind}_{short}": found[name] or 0.0
            for kind, found in self.overall.items()
            for name, short in names.items()
        }

    def describe(self) -> str:
        """The scores in a few words."""
        metrics = self.metrics()
        return ", ".join(
            f"{kind} AP {metrics[f'val_{kind}_ap']:.1%} (AP50 {metrics[f'val_{kind}_ap50']:.1%})"
            for kind in self.overall
        )

    def to_mapping(self) -> dict[str, Any]:
        """As JSON types."""
        return self.metrics() | {"images": self.num_images, **self.overall, "per_class": self.per_class}


def score(truth: dict[str, Any], predictions: Sequence[dict[str, Any]], *, masks: bool) -> Scores:
    """Score predictions.

    Args:
        truth: Images with their objects in COCO's format; see `Scenes.ground_truth`.
        predictions: COCO's results: "image_id", "category_id", "bbox" (left, top, width, height), "score", and
            "segmentation" as run lengths.
        masks: Score masks besides boxes.
    """
    classes = {category["id"]: category["name"] for category in truth["categories"]}
    expected = COCO(truth)
    overall: dict[str, dict[str, float | None]] = {}
    per_class: dict[str, dict[str, float | None]] = {name: {} for name in classes.values()}
    for kind in ("bbox", "segm") if masks else ("bbox",):
        found = expected.loadRes([_of_kind(prediction, kind) for prediction in predictions])
        evaluation = COCOeval_faster(expected, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        overall[_KINDS[kind]] = {n: _known(v) for n, v in zip(NAMES, evaluation.stats[: len(NAMES)], strict=True)}
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes; all sizes, 100 boxes
        for position, number in enumerate(evaluation.params.catIds):
            values = precision[:, :, position]
            per_class[classes[number]][_KINDS[kind]] = _known(values[values > -1].mean() if (values > -1).any() else -1)
    return Scores(overall, per_class, len(truth["images"]))


def _of_kind(prediction: dict[str, Any], kind: str) -> dict[str, Any]:
    """A prediction with its box or its mask alone, from which the area is then taken."""
    left_out = "segmentation" if kind == "bbox" else "bbox"
    return {name: value for name, value in prediction.items() if name != left_out}


def _known(value: float | np.floating[Any]) -> float | None:
    return float(value) if value > -1 else None
