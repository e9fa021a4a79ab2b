"""The scores of a classifier on labelled images: top-1, top-5 and per class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmim.data.augment import normalise
from fastmim.data.center_crops import load_centers
from fastmim.data.sources import Source
from fastmim.errors import RunError
from fastmim.training.evaluating import evaluating

TOP = 5


@dataclass(frozen=True)
class Scores:
    """A classifier's predictions for N labelled images."""

    labels: np.ndarray
    """(N,) int64."""
    predicted: np.ndarray
    """(N,) int64, the most probable class."""
    in_top5: np.ndarray
    """(N,) bool, whether the label is among the five most probable classes."""
    loss: float
    """Mean cross entropy."""
    classes: list[str]

    @property
    def top1(self) -> float:
        """Share of the images that are classified correctly."""
        return float((self.labels == self.predicted).mean())

    @property
    def counts(self) -> np.ndarray:
        """(C,) int64, images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def per_class(self) -> np.ndarray:
        """(C,) float, share of each class's images that are classified correctly; NaN where there are none."""
        right = np.bincount(self.labels[self.labels == self.predicted], minlength=len(self.classes))
        return np.where(self.counts > 0, right / np.maximum(self.counts, 1), np.nan)

    @property
    def mean_class(self) -> float:
        """Mean of `per_class` over the classes that have images: rare ones count like common ones."""
        return float(np.nanmean(self.per_class))

    @property
    def confusion(self) -> np.ndarray:
        """(C, C) int64: how many images of the row's class were classified as the column's."""
        num = len(self.classes)
        return np.bincount(self.labels * num + self.predicted, minlength=num * num).reshape(num, num)

    def metrics(self) -> dict[str, float]:
        """The metrics to log, as shares of 1; top-5 only with more than five classes."""
        numbers = {"val_loss": self.loss, "val_top1": self.top1, "val_mean_class": self.mean_class}
        return numbers | ({"val_top5": float(self.in_top5.mean())} if len(self.classes) > TOP else {})

    def describe(self) -> str:
        """The scores in words."""
        top5 = f", {self.in_top5.mean():.1%} top-5" if len(self.classes) > TOP else ""
        return f"{self.top1:.1%} top-1{top5}, {self.mean_class:.1%} mean over classes, loss {self.loss:.3f}"

    def to_mapping(self) -> dict[str, Any]:
        """All scores as JSON types; the accuracy of a class without images is None."""
        per_class = {
            name: {"accuracy": None if math.isnan(accuracy) else float(accuracy), "images": int(count)}
            for name, accuracy, count in zip(self.classes, self.per_class, self.counts, strict=True)
        }
        return {"images": len(self.labels), **self.metrics(), "per_class": per_class}


def classify(
    classifier: nn.Module,
    source: Source,
    *,
    size: int,
    mean: Tensor,
    std: Tensor,
    batch_size: int,
    num_workers: int,
    bf16: bool,
    crop_pct: float,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Classify the central crop of each image, or of some, in order. The model keeps its mode.

    Yields:
        Logits (b, C), float32 on the classifier's device, and the batch of `load_centers` without its images; b may
        be 0.
    """
    device = mean.device
    batches = load_centers(
        source,
        size=size,
        batch_size=batch_size,
        num_workers=num_workers,
        crop_pct=crop_pct,
        indices=indices,
        pin_memory=device.type == "cuda",
    )
    for batch in batches:
        images = batch.pop("images").to(device, non_blocking=True)
        logits = torch.empty(0, 1, device=device)
        if len(images):
            with evaluating(classifier), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = classifier(normalise(images, mean, std)).float()
        yield logits, batch


@dataclass
class Answers:
    """A classifier's predictions for some labelled images."""

    labels: np.ndarray
    """(n,) int64."""
    predicted: np.ndarray
    """(n,) int64, the most probable class."""
    in_top5: np.ndarray
    """(n,) bool, whether the label is among the five most probable classes."""
    losses: np.ndarray
    """(n,) float64, cross entropy."""
    bad: list[tuple[str, str]]
    """(name, reason) of the images that could not be read."""


def answer(
    classifier: nn.Module,
    source: Source,
    *,
    size: int,
    mean: Tensor,
    std: Tensor,
    batch_size: int = 256,
    num_workers: int = 0,
    bf16: bool = False,
    crop_pct: float = 1.0,
    indices: Sequence[int] | None = None,
) -> Answers:
    """Classify the central crops of labelled images. The model keeps its mode.

    Args:
        classifier: (B, 3, size, size) normalised -> (B, C) logits.
        source: Has labels and classes.
        mean: (3,) on the classifier's device.
        std: (3,) likewise.
        indices: The images to classify, in this order; all if None.
    """
    kinds = (torch.int64, torch.int64, torch.bool, torch.float32)
    parts = [tuple(torch.empty(0, dtype=kind, device=mean.device) for kind in kinds)]
    bad: list[tuple[str, str]] = []
    batches = classify(
        classifier,
        source,
        size=size,
        mean=mean,
        std=std,
        batch_size=batch_size,
        num_workers=num_workers,
        bf16=bf16,
        crop_pct=crop_pct,
        indices=indices,
    )
    for logits, batch in batches:
        bad += batch["bad"]
        if not len(logits):
            continue
        labels = batch["labels"].to(mean.device, non_blocking=True)
        best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices  # (b, 5)
        loss = F.cross_entropy(logits, labels, reduction="none")
        parts.append((labels, best[:, 0], (best == labels[:, None]).any(1), loss))
    labels, predicted, in_top5, losses = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return Answers(labels.numpy(), predicted.numpy(), in_top5.numpy(), losses.double().numpy(), bad)


def score(answers: Sequence[Answers], source: Source) -> Scores:
    """Score answers about different images of a source.

    Raises:
        RunError: they are about none, as none could be read.
    """
    names = ("labels", "predicted", "in_top5", "losses")
    labels, predicted, in_top5, losses = (np.concatenate([getattr(part, name) for part in answers]) for name in names)
    if not len(labels):
        raise RunError(
            f"none of the {len(source)} images of {source.origin} can be read; expected images to validate on"
        )
    return Scores(labels, predicted, in_top5, losses.mean().item(), source.classes or [])
