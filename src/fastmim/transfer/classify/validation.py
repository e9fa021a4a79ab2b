"""Validation during fine-tuning: scores, confusion matrix, the best weights so far, and a summary in words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmim import weights
from fastmim.data.bad_images import BadImages
from fastmim.data.labelled import Labelled
from fastmim.errors import RunError
from fastmim.system import files
from fastmim.system.run_directory import RunDirectory
from fastmim.training.plan import Plan
from fastmim.transfer.classify.confusion import LEGEND, MAX_CLASSES, draw_confusion, legend
from fastmim.transfer.classify.evaluation import Scores, evaluate
from fastmim.transfer.classify.finetuner import Finetuner
from fastmim.transfer.classify.settings import FinetuneConfig

_NUM_NAMED = 5


@dataclass(kw_only=True)
class Validator:
    """Evaluates a model while it is trained, and writes weights files."""

    config: FinetuneConfig
    plan: Plan
    data: Labelled
    model: Finetuner
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bad_images: BadImages
    say: Callable[[str], None]
    """Prints a line."""

    def __post_init__(self) -> None:
        self.directory = RunDirectory(self.config.out)
        before = [line["val_top1"] for line in self.directory.read_metrics() if "val_top1" in line]
        self.best = max(before, default=-1.0)
        """The best top-1 so far, earlier starts of the run included; -1 before the first."""

    def __call__(self, step: int) -> dict[str, float]:
        """Evaluate, draw the confusion matrix, and keep the weights if they are the best; return the metrics."""
        config, plan = self.config, self.plan
        scores = evaluate(
            self.model.result,
            self.data.val,
            size=config.img_size,
            mean=torch.tensor(self.mean, device=plan.device),
            std=torch.tensor(self.std, device=plan.device),
            batch_size=2 * config.batch_size // plan.stages[0].accumulation,
            num_workers=plan.num_workers,
            bf16=plan.bf16,
            crop_pct=config.eval_crop,
            found_bad=lambda bad, num_seen: self.bad_images.update(bad, num_seen=num_seen),
        )
        is_best = scores.top1 > self.best
        self.say(f"step {step}/{plan.total_steps}  validation: {scores.describe()}{'  (best)' if is_best else ''}")
        files.write_json(self.directory.evaluation, {"step": step} | scores.to_mapping())
        if len(scores.classes) <= MAX_CLASSES:
            self._draw(scores, step)
        if is_best:
            self.best = scores.top1
            self.save(self.directory.best_weights, step, scores=scores.to_mapping())
        return scores.metrics()

    def _draw(self, scores: Scores, step: int) -> None:
        """Draw the confusion matrix, with a file of the names that no font can write."""
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
            "recipe": config.recipe,
            "data": config.data,
            "range": config.range,
            "steps": step,
            "mean": self.mean,
            "std": self.std,
            "eval_crop": config.eval_crop,
        }
        state = {name: tensor.detach().cpu() for name, tensor in classifier.model.state_dict().items()}
        weights.write(path, state, facts | more)

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
        known = sorted((c["accuracy"], name) for name, c in per_class.items() if c["accuracy"] is not None)
        absent = [name for name, c in per_class.items() if c["accuracy"] is None]
        hardest = ", ".join(f"{name} {accuracy:.1%}" for accuracy, name in known[:_NUM_NAMED])
        top5 = f", {final['val_top5']:.1%} within its five best guesses" if "val_top5" in final else ""
        lines = [
            f"final     {final['val_top1']:.1%} of {final['images']:,} validation images correct{top5}; "
            f"{final['val_mean_class']:.1%} as the mean over classes; best {self.best:.1%}",
            f"hardest   {hardest}",
            f"n/a       no validation images of {', '.join(absent)}" if absent else "",
            f"done: {directory.weights} (best: {directory.best_weights.name}, each class: {directory.evaluation.name})",
        ]
        return "\n".join(line for line in lines if line)
