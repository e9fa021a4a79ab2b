"""Validation of a classifier: scores, confusion matrix, weights files, a summary in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmim import weights
from fastmim.data.labelled import Labelled
from fastmim.system import files
from fastmim.training.plan import Plan
from fastmim.transfer.classify.confusion import LEGEND, MAX_CLASSES, draw_confusion, legend
from fastmim.transfer.classify.evaluation import Answers, Scores, answer, score
from fastmim.transfer.classify.finetuner import Finetuner
from fastmim.transfer.classify.settings import FinetuneConfig
from fastmim.transfer.validation import NUM_NAMED, Validator


@dataclass(kw_only=True)
class ClassifierValidator(Validator[Answers, Scores]):
    """Evaluates a classifier while it is trained, and writes weights files."""

    config: FinetuneConfig
    plan: Plan
    data: Labelled
    model: Finetuner

    def answer(self, indices: Sequence[int]) -> Answers:
        """Ask the classifier, or the average of its weights."""
        config, plan = self.config, self.plan
        return answer(
            self.model.result,
            self.data.val,
            size=config.img_size,
            mean=torch.tensor(self.about["mean"], device=plan.device),
            std=torch.tensor(self.about["std"], device=plan.device),
            batch_size=2 * config.batch_size // plan.stages[0].accumulation,
            num_workers=plan.num_workers,
            bf16=plan.bf16,
            crop_pct=config.eval_crop,
            indices=indices,
        )

    def score(self, answers: Sequence[Answers]) -> Scores:
        return score(answers, self.data.val)

    def draw(self, step: int, scores: Scores) -> None:
        """Draw the confusion matrix, with a file of the names that no font can write, unless the classes are many."""
        if len(scores.classes) > MAX_CLASSES:
            return
        draw_confusion(scores, caption=f"step {step}").save(self.directory.picture(f"confusion_{step:09d}.png"))
        names, path = legend(scores.classes), self.directory.picture(LEGEND)
        if names and not path.exists():
            files.write_text(path, names)
            self.say(f"no installed font has the letters of some class names: pictures show numbers, named in {path}")

    def save(self, path: Path, step: int, **more: Any) -> None:
        """Write the classifier as `timm.create_model(architecture, **arguments, checkpoint_path=...)` loads it."""
        classifier, config = self.model.result, self.config
        facts = {
            "architecture": classifier.name,
            "arguments": classifier.arguments(),
            "img_size": config.img_size,
            "num_blocks": classifier.num_blocks,
            "trained_blocks": classifier.num_blocks,
            "untrained": [],
            "classes": self.data.classes,
            "steps": step,
            "eval_crop": config.eval_crop,
        }
        state = {name: tensor.detach().cpu() for name, tensor in classifier.model.state_dict().items()}
        weights.write(path, state, facts | dict(self.about) | more)

    def save_best(self, step: int, scores: Scores) -> None:
        """Write the best weights so far, with their scores."""
        self.save(self.directory.best_weights, step, scores=scores.to_mapping())

    def summary(self, final: Mapping[str, Any]) -> str:
        """The final scores in plain words."""
        per_class = final["per_class"]
        known = sorted((c["accuracy"], name) for name, c in per_class.items() if c["accuracy"] is not None)
        absent = [name for name, c in per_class.items() if c["accuracy"] is None]
        hardest = ", ".join(f"{name} {accuracy:.1%}" for accuracy, name in known[:NUM_NAMED])
        top5 = f", {final['val_top5']:.1%} within its five best guesses" if "val_top5" in final else ""
        lines = [
            f"final     {final['val_top1']:.1%} of {final['images']:,} validation images correct{top5}; "
            f"{final['val_mean_class']:.1%} as the mean over classes; best {self.best:.1%}",
            f"hardest   {hardest}",
            f"n/a       no validation images of {', '.join(absent)}" if absent else "",
            self.done(),
        ]
        return "\n".join(line for line in lines if line)
