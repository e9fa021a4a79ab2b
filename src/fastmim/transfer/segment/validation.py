"""Validation of a segmenter: scores, pictures, weights files, a summary in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.data.label_crops import resize_labels
from fastmim.data.label_images import LabelledPixels
from fastmim.errors import listed
from fastmim.transfer.segment.evaluation import Answers, Inference, answer, score
from fastmim.transfer.segment.file import FORMAT, Design
from fastmim.transfer.segment.pictures import comparison
from fastmim.transfer.segment.scores import Scores
from fastmim.transfer.segment.segmenter import Segmenter
from fastmim.transfer.validation import NUM_NAMED, Validator, spread


@dataclass(kw_only=True)
class SegmenterValidator(Validator[Answers, Scores]):
    """Evaluates a segmenter while it is trained, and writes weights files."""

    scenes: LabelledPixels
    """To validate on."""
    num_pictures: int
    model: Segmenter
    design: Design
    inference: Inference

    def answer(self, indices: Sequence[int]) -> Answers:
        return answer(self.model, self.scenes, self.inference, indices)

    def score(self, answers: Sequence[Answers]) -> Scores:
        return score(answers, self.scenes)

    def draw(self, step: int, scores: Scores) -> None:
        """Draw predictions at equal distances in the validation images."""
        for predicted, batch in self.inference.predict(self.model, self.scenes, spread(self.scenes, self.num_pictures)):
            if predicted is None:
                continue
            pixels = batch["image"].permute(1, 2, 0).numpy()
            sides = pixels.shape[:2]
            labels, found = (resize_labels(part.cpu().numpy(), sides) for part in (batch["labels"], predicted))
            caption = f"step {step}: {scores.describe()}"
            picture = comparison(pixels, labels, found, classes=scores.classes, caption=caption)
            picture.save(self.directory.picture(f"prediction_{step:09d}_{batch['index']:06d}.png"))

    def save(self, path: Path, step: int, **more: Any) -> None:
        """Write the segmenter."""
        FORMAT.save(path, self.model, self.model.trunk, self.design, about={**self.about, "steps": step, **more})

    def summary(self, final: Mapping[str, Any]) -> str:
        """The final scores in plain words."""
        per_class = final["per_class"]
        known = sorted((c["iou"], name) for name, c in per_class.items() if c["iou"] is not None)
        absent = [name for name, c in per_class.items() if not c["pixels"]]
        hardest = ", ".join(f"{name} {iou:.1%}" for iou, name in known[:NUM_NAMED])
        lines = [
            f"final     mIoU {final['val_miou']:.1%} on {final['images']:,} validation images, "
            f"{final['val_pixel_accuracy']:.1%} of pixels correct, {final['val_mean_accuracy']:.1%} mean over classes; "
            f"best mIoU {self.best:.1%}",
            f"hardest   {hardest}",
            f"n/a       no validation pixels of {listed(absent, NUM_NAMED)}" if absent else "",
            self.done(),
        ]
        return "\n".join(line for line in lines if line)
