"""Scores of a segmentation: intersection over union, and accuracy, of each class and on average."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmim.data.label_images import IGNORED


@dataclass(frozen=True)
class Scores:
    """How often pixels of each class were given each class."""

    confusion: np.ndarray
    """(C, C) int64: pixels of the row's class that were predicted to be of the column's."""
    classes: list[str]
    num_images: int

    @property
    def iou(self) -> np.ndarray:
        """(C,) float: pixels in both the class's label and prediction, as a share of those in either; NaN if none."""
        hits = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return np.where(union > 0, hits / np.maximum(union, 1), np.nan)

    @property
    def accuracy(self) -> np.ndarray:
        """(C,) float: share of the class's pixels that are predicted correctly; NaN if there are none."""
        pixels = self.confusion.sum(1)
        return np.where(pixels > 0, np.diag(self.confusion) / np.maximum(pixels, 1), np.nan)

    def metrics(self) -> dict[str, float]:
        """The metrics to log, as shares of 1. Means are over the classes that have a value."""
        return {
            "val_miou": _mean(self.iou),
            "val_mean_accuracy": _mean(self.accuracy),
            "val_pixel_accuracy": float(np.diag(self.confusion).sum() / max(1, self.confusion.sum())),
        }

    def describe(self) -> str:
        """The scores in words."""
        found = self.metrics()
        return (
            f"mIoU {found['val_miou']:.1%}, {found['val_pixel_accuracy']:.1%} of pixels correct, "
            f"{found['val_mean_accuracy']:.1%} mean over classes"
        )

    def to_mapping(self) -> dict[str, Any]:
        """All scores as JSON types; a class without a value has None."""
        pixels = self.confusion.sum(1)
        per_class = {
            name: {"iou": _number(iou), "accuracy": _number(accuracy), "pixels": int(count)}
            for name, iou, accuracy, count in zip(self.classes, self.iou, self.accuracy, pixels, strict=True)
        }
        return {"images": self.num_images, **self.metrics(), "per_class": per_class}


def count_pairs(predicted: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    """(H, W) predictions and labels -> their (C, C) confusion matrix, int64, without ignored pixels."""
    labels, predicted = labels.flatten().long(), predicted.flatten()
    known = labels != IGNORED
    pairs = labels[known] * num_classes + predicted[known]
    counts = torch.bincount(pairs, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).cpu().numpy()


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
