"""The objects that a detector finds in whole images, and their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from fastmim.data.augment import normalise
from fastmim.data.sources import Source
from fastmim.errors import RunError
from fastmim.training.evaluating import evaluating
from fastmim.transfer.detect import scores
from fastmim.transfer.detect.coco import Scenes
from fastmim.transfer.detect.crops import load_whole
from fastmim.transfer.detect.detector import Detector
from fastmim.transfer.detect.outlines import from_mask
from fastmim.transfer.detect.scores import Scores


@dataclass(frozen=True)
class Found:
    """An object that was found in an image."""

    label: int
    """Position in the list of classes."""
    score: float
    box: list[float]
    """Left, top, width, height in pixels of the image."""
    runs: dict[str, Any] | None
    """The mask in COCO's compressed run lengths; None without masks."""

    def to_coco(self, image_id: int, categories: Sequence[int]) -> dict[str, Any]:
        """The object as an entry of COCO's results."""
        entry = {"image_id": image_id, "category_id": categories[self.label], "bbox": self.box, "score": self.score}
        return entry | ({} if self.runs is None else {"segmentation": self.runs})


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How images are tested: whole, brought to a longer side."""

    size: int
    """The longer side in pixels."""
    mean: Tensor
    """(3,), on the detector's device."""
    std: Tensor
    bf16: bool
    num_workers: int

    def predict(
        self, detector: Detector, source: Source, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[Found] | None, dict[str, Any]]]:
        """Find the objects of images in order. The model keeps its mode.

        Yields:
            The objects, the surest first, or None if the image is unusable; and the image's batch from `load_whole`.
        """
        device = self.mean.device
        for batch in load_whole(source, long_side=self.size, num_workers=self.num_workers, indices=indices):
            if batch["bad"]:
                yield None, batch
                continue
            image = normalise(batch["image"].to(device), self.mean, self.std)
            with evaluating(detector), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                found = detector.detect(image)
            yield _in_pixels(found, (image.shape[-2], image.shape[-1]), batch["size"]), batch


def _in_pixels(found: dict[str, Tensor], seen: tuple[int, int], size: tuple[int, int]) -> list[Found]:
    """What `Detector.detect` found in a resized image -> objects in the image's own size."""
    factors = torch.tensor([size[1] / seen[1], size[0] / seen[0]] * 2, device=found["boxes"].device)
    boxes, objects = found["boxes"].float() * factors, []
    for number, (box, label, sure) in enumerate(
        zip(boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
    ):
        runs = None
        if "masks" in found:  # one at a time: a hundred masks of a large photograph would fill gigabytes
            part = slice(number, number + 1)
            pasted = paste_masks_in_image(found["masks"][part].float(), boxes[part], size)
            runs = from_mask((pasted[0, 0] > 0.5).cpu().numpy())
        left, top, right, bottom = box
        objects.append(Found(label, sure, [left, top, right - left, bottom - top], runs))
    return objects


@dataclass
class Answers:
    """What a detector said about some images."""

    results: list[dict[str, Any]] = field(default_factory=list)
    """Objects as COCO's results have them."""
    usable: list[int] = field(default_factory=list)
    """Positions of the images that could be used."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of the others."""


def answer(detector: Detector, scenes: Scenes, inference: Inference, indices: Sequence[int]) -> Answers:
    """Ask a detector about images with annotations.

    Args:
        detector: Its device is that of `inference.mean`.
        scenes: The images.
        inference: How they are tested.
        indices: Those to ask about.
    """
    answers = Answers()
    for found, batch in inference.predict(detector, scenes, indices):
        answers.bad += batch["bad"]
        if found is not None:
            answers.usable.append(batch["index"])
            answers.results += [item.to_coco(scenes.ids[batch["index"]], scenes.categories) for item in found]
    return answers


def score(answers: Sequence[Answers], scenes: Scenes, *, masks: bool) -> Scores:
    """Score answers about different images.

    Raises:
        RunError: no image could be used.
    """
    usable = sorted(index for part in answers for index in part.usable)
    if not usable:
        raise RunError(f"none of the {len(scenes)} images of {scenes.origin} can be used; expected some to validate on")
    results = [result for part in answers for result in part.results]
    return scores.score(scenes.ground_truth(usable), results, masks=masks)
