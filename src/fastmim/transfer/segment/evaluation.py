"""The predictions of a segmenter for whole images, and their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmim.data.augment import normalise
from fastmim.data.label_crops import load_whole
from fastmim.data.label_images import LabelledPixels
from fastmim.data.sources import Source
from fastmim.errors import RunError
from fastmim.training.evaluating import evaluating
from fastmim.transfer.segment.scores import Scores, count_pairs
from fastmim.transfer.segment.segmenter import Segmenter, best_classes, whole_logits, window_logits


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How images are tested: brought to a shorter side, then seen in windows or whole."""

    size: int
    """The shorter side, and the side of the windows, in pixels."""
    stride: int | None
    """Distance of windows; None to see the image whole."""
    mean: Tensor
    """(3,), on the segmenter's device."""
    std: Tensor
    bf16: bool
    num_workers: int

    def predict(
        self, segmenter: Segmenter, source: Source, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor | None, dict[str, Any]]]:
        """Segment images in order. The model keeps its mode.

        Yields:
            (H, W) int64, the class of each pixel of the image in its own size, or None if it is unusable; and the
            image's batch from `load_whole`.
        """
        device = self.mean.device
        for batch in load_whole(source, short_side=self.size, num_workers=self.num_workers, indices=indices):
            if batch["bad"]:
                yield None, batch
                continue
            image = normalise(batch["image"].to(device), self.mean, self.std)
            with evaluating(segmenter), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                if self.stride is None:
                    logits = whole_logits(segmenter, image)
                else:
                    logits = window_logits(segmenter, image, size=self.size, stride=self.stride)
                classes = best_classes(logits, batch["size"])
            yield classes, batch


@dataclass
class Answers:
    """What a segmenter said about some images."""

    confusion: np.ndarray
    """(C, C) int64, pixels of the row's class that were taken for the column's."""
    num_images: int
    """Those that could be used."""
    bad: list[tuple[str, str]]
    """(name, reason) of the others."""


def answer(segmenter: Segmenter, scenes: LabelledPixels, inference: Inference, indices: Sequence[int]) -> Answers:
    """Ask a segmenter about images with label images.

    Args:
        segmenter: Its device is that of `inference.mean`.
        scenes: The images.
        inference: How they are tested.
        indices: Those to ask about.
    """
    num_classes = len(scenes.classes)
    found = Answers(np.zeros((num_classes, num_classes), dtype=np.int64), 0, [])
    for predicted, batch in inference.predict(segmenter, scenes, indices):
        found.bad += batch["bad"]
        if predicted is not None:
            found.confusion += count_pairs(predicted, batch["labels"].to(predicted.device), num_classes)
            found.num_images += 1
    return found


def score(answers: Sequence[Answers], scenes: LabelledPixels) -> Scores:
    """Score answers about different images.

    Raises:
        RunError: no image could be used.
    """
    num_images = sum(part.num_images for part in answers)
    if not num_images:
        raise RunError(
            f"none of the {len(scenes)} images of {scenes.origin} can be used with its label image; expected images to "
            f"validate on"
        )
    confusion = np.sum([part.confusion for part in answers], axis=0)
    return Scores(confusion, scenes.classes, num_images)
