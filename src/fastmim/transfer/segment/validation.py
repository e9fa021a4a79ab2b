"""Validation during the training of a segmenter: scores, pictures, the best weights so far, a summary in words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.data.bad_images import BadImages
from fastmim.data.label_crops import resize_labels
from fastmim.data.label_images import Scenes
from fastmim.errors import RunError
from fastmim.system import files
from fastmim.system.run_directory import RunDirectory
from fastmim.transfer.segment import file
from fastmim.transfer.segment.evaluation import Inference, evaluate
from fastmim.transfer.segment.file import Design
from fastmim.transfer.segment.pictures import comparison
from fastmim.transfer.segment.scores import Scores
from fastmim.transfer.segment.segmenter import Segmenter
from fastmim.transfer.segment.settings import SegmentConfig

_NUM_NAMED = 5


@dataclass(kw_only=True)
class Validator:
    """Evaluates a segmenter while it is trained, and writes weights files."""

    config: SegmentConfig
    total_steps: int
    scenes: Scenes
    model: Segmenter
    design: Design
    inference: Inference
    about: dict[str, Any]
    """Facts for weights files."""
    bad_images: BadImages
    say: Callable[[str], None]
    """Prints a line."""

    def __post_init__(self) -> None:
        self.directory = RunDirectory(self.config.out)
        before = [line["val_miou"] for line in self.directory.read_metrics() if "val_miou" in line]
        self.best = max(before, default=-1.0)
        """The best mIoU so far, earlier starts of the run included; -1 before the first."""

    def __call__(self, step: int) -> dict[str, float]:
        """Evaluate, draw some predictions, and keep the weights if they are the best; return the metrics."""
        scores = evaluate(
            self.model,
            self.scenes.val,
            self.inference,
            found_bad=lambda bad, num_seen: self.bad_images.update(bad, num_seen=num_seen),
        )
        metrics = scores.metrics()
        is_best = metrics["val_miou"] > self.best
        self.say(f"step {step}/{self.total_steps}  validation: {scores.describe()}{'  (best)' if is_best else ''}")
        files.write_json(self.directory.evaluation, {"step": step} | scores.to_mapping())
        self._draw(step, scores)
        if is_best:
            self.best = metrics["val_miou"]
            self.save(self.directory.best_weights, step)
        return metrics

    def _draw(self, step: int, scores: Scores) -> None:
        """Draw predictions at equal distances in the validation images."""
        val, num = self.scenes.val, min(self.config.num_pictures, len(self.scenes.val))
        chosen = [number * len(val) // num for number in range(num)]
        for predicted, batch in self.inference.predict(self.model, val, chosen):
            if predicted is None:
                continue
            pixels = batch["image"].permute(1, 2, 0).numpy()
            sides = pixels.shape[:2]
            labels, found = (resize_labels(part.cpu().numpy(), sides) for part in (batch["labels"], predicted))
            caption = f"step {step}: {scores.describe()}"
            picture = comparison(pixels, labels, found, classes=scores.classes, caption=caption)
            picture.save(self.directory.picture(f"prediction_{step:09d}_{batch['index']:06d}.png"))

    def save(self, path: Path, step: int) -> None:
        """Write the segmenter."""
        file.save(path, self.model, self.design, about=self.about | {"steps": step})

    def last_scores(self, step: int) -> dict[str, Any]:
        """The contents of `evaluation.json` for this step; evaluate again if they are of another, or damaged."""
        path = self.directory.evaluation
        with suppress(RunError, FileNotFoundError):
            if (scores := files.read_json(path)).get("step") == step:
                return scores
        self(step)
        return files.read_json(path)

    def summary(self, final: dict[str, Any]) -> str:
        """The final scores in plain words."""
        per_class, directory = final["per_class"], self.directory
        known = sorted((c["iou"], name) for name, c in per_class.items() if c["iou"] is not None)
        absent = [name for name, c in per_class.items() if not c["pixels"]]
        hardest = ", ".join(f"{name} {iou:.1%}" for iou, name in known[:_NUM_NAMED])
        lines = [
            f"final     mIoU {final['val_miou']:.1%} on {final['images']:,} validation images, "
            f"{final['val_pixel_accuracy']:.1%} of pixels correct, {final['val_mean_accuracy']:.1%} mean over classes; "
            f"best mIoU {self.best:.1%}",
            f"hardest   {hardest}",
            f"n/a       no validation pixels of {', '.join(absent[:_NUM_NAMED])}"
            + (f" and {len(absent) - _NUM_NAMED} more" if len(absent) > _NUM_NAMED else "")
            if absent
            else "",
            f"done: {directory.weights} (best: {directory.best_weights.name}, each class: {directory.evaluation.name})",
        ]
        return "\n".join(line for line in lines if line)
