"""Validation during the training of a detector: scores, pictures, the best weights so far, a summary in words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.data.bad_images import BadImages
from fastmim.errors import RunError, listed
from fastmim.system import files
from fastmim.system.run_directory import RunDirectory
from fastmim.transfer.detect import file
from fastmim.transfer.detect.coco import Scenes
from fastmim.transfer.detect.detector import Detector
from fastmim.transfer.detect.evaluation import Inference, evaluate
from fastmim.transfer.detect.file import Design
from fastmim.transfer.detect.pictures import SURE, comparison, draw, labelled
from fastmim.transfer.detect.scores import Scores
from fastmim.transfer.detect.settings import DetectConfig

_NUM_NAMED = 5


@dataclass(kw_only=True)
class Validator:
    """Evaluates a detector while it is trained, and writes weights files."""

    config: DetectConfig
    total_steps: int
    scenes: Scenes
    """To validate on."""
    model: Detector
    design: Design
    inference: Inference
    about: dict[str, Any]
    """Facts for weights files."""
    bad_images: BadImages
    say: Callable[[str], None]
    """Prints a line."""

    def __post_init__(self) -> None:
        self.directory = RunDirectory(self.config.out)
        self.metric = "val_mask_ap" if self.design.masks else "val_box_ap"
        """The score by which weights are the best: the AP of masks, or of boxes if there are no masks."""
        before = [line[self.metric] for line in self.directory.read_metrics() if self.metric in line]
        self.best = max(before, default=-1.0)
        """The best so far, earlier starts of the run included; -1 before the first."""

    def __call__(self, step: int) -> dict[str, float]:
        """Evaluate, draw some predictions, and keep the weights if they are the best; return the metrics."""
        scores = evaluate(
            self.model,
            self.scenes,
            self.inference,
            found_bad=lambda bad, num_seen: self.bad_images.update(bad, num_seen=num_seen),
        )
        metrics = scores.metrics()
        is_best = metrics[self.metric] > self.best
        self.say(f"step {step}/{self.total_steps}  validation: {scores.describe()}{'  (best)' if is_best else ''}")
        files.write_json(self.directory.evaluation, {"step": step} | scores.to_mapping())
        self._draw(step, scores)
        if is_best:
            self.best = metrics[self.metric]
            self.save(self.directory.best_weights, step)
        return metrics

    def _draw(self, step: int, scores: Scores) -> None:
        """Draw predictions at equal distances in the validation images."""
        num = min(self.config.num_pictures, len(self.scenes))
        chosen = [number * len(self.scenes) // num for number in range(num)]
        for found, batch in self.inference.predict(self.model, self.scenes, chosen):
            if found is None:
                continue
            pixels, index = batch["image"].permute(1, 2, 0).numpy(), batch["index"]
            expected, predicted = (
                draw(pixels, batch["size"], objects, self.scenes.classes)
                for objects in (labelled(self.scenes, index), [item for item in found if item.score >= SURE])
            )
            picture = comparison(expected, predicted, caption=f"step {step}: {scores.describe()}")
            picture.save(self.directory.picture(f"detection_{step:09d}_{index:06d}.png"))

    def save(self, path: Path, step: int) -> None:
        """Write the detector."""
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
        kind, directory = "mask" if self.design.masks else "box", self.directory
        known = sorted((c[kind], name) for name, c in final["per_class"].items() if c[kind] is not None)
        absent = [name for name, c in final["per_class"].items() if c[kind] is None]
        boxes = f"box AP {final['val_box_ap']:.1%} (AP50 {final['val_box_ap50']:.1%})"
        masks = f", mask AP {final['val_mask_ap']:.1%} (AP50 {final['val_mask_ap50']:.1%})" if kind == "mask" else ""
        lines = [
            f"final     {boxes}{masks} on {final['images']:,} validation images; best {kind} AP {self.best:.1%}",
            f"hardest   {', '.join(f'{name} {ap:.1%}' for ap, name in known[:_NUM_NAMED])}",
            f"n/a       no validation objects of {listed(absent, _NUM_NAMED)}" if absent else "",
            f"done: {directory.weights} (best: {directory.best_weights.name}, each class: {directory.evaluation.name})",
        ]
        return "\n".join(line for line in lines if line)
