"""Validation of a detector: scores, pictures, weights files, a summary in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.errors import listed
from fastmim.transfer.detect.coco import Scenes
from fastmim.transfer.detect.detector import Detector
from fastmim.transfer.detect.evaluation import Answers, Inference, answer, score
from fastmim.transfer.detect.file import FORMAT, Design
from fastmim.transfer.detect.pictures import SURE, comparison, draw, labelled
from fastmim.transfer.detect.scores import Scores
from fastmim.transfer.validation import NUM_NAMED, Validator, spread


@dataclass(kw_only=True)
class DetectorValidator(Validator[Answers, Scores]):
    """Evaluates a detector while it is trained, and writes weights files."""

    scenes: Scenes
    """To validate on."""
    num_pictures: int
    model: Detector
    design: Design
    inference: Inference

    def answer(self, indices: Sequence[int]) -> Answers:
        return answer(self.model, self.scenes, self.inference, indices)

    def score(self, answers: Sequence[Answers]) -> Scores:
        return score(answers, self.scenes, masks=self.design.masks)

    def draw(self, step: int, scores: Scores) -> None:
        """Draw predictions at equal distances in the validation images."""
        for found, batch in self.inference.predict(self.model, self.scenes, spread(self.scenes, self.num_pictures)):
            if found is None:
                continue
            pixels, index = batch["image"].permute(1, 2, 0).numpy(), batch["index"]
            expected, predicted = (
                draw(pixels, batch["size"], objects, self.scenes.classes)
                for objects in (labelled(self.scenes, index), [item for item in found if item.score >= SURE])
            )
            picture = comparison(expected, predicted, caption=f"step {step}: {scores.describe()}")
            picture.save(self.directory.picture(f"detection_{step:09d}_{index:06d}.png"))

    def save(self, path: Path, step: int, **more: Any) -> None:
        """Write the detector."""
        FORMAT.save(path, self.model, self.model.trunk, self.design, about={**self.about, "steps": step, **more})

    def summary(self, final: Mapping[str, Any]) -> str:
        """The final scores in plain words."""
        kind = "mask" if self.design.masks else "box"
        known = sorted((c[kind], name) for name, c in final["per_class"].items() if c[kind] is not None)
        absent = [name for name, c in final["per_class"].items() if c[kind] is None]
        boxes = f"box AP {final['val_box_ap']:.1%} (AP50 {final['val_box_ap50']:.1%})"
        masks = f", mask AP {final['val_mask_ap']:.1%} (AP50 {final['val_mask_ap50']:.1%})" if kind == "mask" else ""
        lines = [
            f"final     {boxes}{masks} on {final['images']:,} validation images; best {kind} AP {self.best:.1%}",
            f"hardest   {', '.join(f'{name} {ap:.1%}' for ap, name in known[:NUM_NAMED])}",
            f"n/a       no validation objects of {listed(absent, NUM_NAMED)}" if absent else "",
            self.done(),
        ]
        return "\n".join(line for line in lines if line)
