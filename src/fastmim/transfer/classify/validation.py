"""Validation during fine-tuning: scores, pictures, the best weights so far, and the outcome in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmim import weights
from fastmim.data.bad_images import BadImages
from fastmim.data.labelled import Labelled
from fastmim.transfer.classify.confusion import MOST_DRAWN, draw_confusion
from fastmim.transfer.classify.evaluation import evaluate
from fastmim.transfer.classify.finetuner import Finetuner
from fastmim.transfer.classify.plan import Plan
from fastmim.transfer.classify.settings import FinetuneConfig

BEST_FILE = "weights_best.safetensors"
SCORES_FILE = "evaluation.json"
_NAMED = 5


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
    """Shows a line to the reader."""
    best: float
    """The best top-1 so far; -1 before the first."""

    def __call__(self, step: int) -> dict[str, float]:
        """Evaluate, draw the confusion matrix, keep the weights if they are the best; the numbers to log."""
        config, plan = self.config, self.plan
        scores = evaluate(
            self.model.result,
            self.data.val,
            size=config.img_size,
            mean=torch.tensor(self.mean, device=plan.device),
            std=torch.tensor(self.std, device=plan.device),
            batch_size=2 * config.batch_size // plan.stage.accumulation,
            num_workers=plan.num_workers,
            bf16=plan.bf16,
            crop_pct=config.eval_crop,
            found_bad=lambda bad, num_seen: self.bad_images.update(bad, num_seen=num_seen),
        )
        is_best = scores.top1 > self.best
        self.say(f"step {step}/{plan.total_steps}  validation: {scores.describe()}{'  (best)' if is_best else ''}")
        partial = config.out / f".{SCORES_FILE}.tmp"
        partial.write_text(json.dumps({"step": step} | scores.to_mapping(), indent=1, ensure_ascii=False) + "\n")
        partial.replace(config.out / SCORES_FILE)
        if len(scores.classes) <= MOST_DRAWN:
            folder = config.out / "samples"
            folder.mkdir(exist_ok=True)
            draw_confusion(scores, caption=f"step {step}").save(folder / f"confusion_{step:09d}.png")
        if is_best:
            self.best = scores.top1
            self.save(BEST_FILE, step, scores=scores.to_mapping())
        return scores.metrics()

    def save(self, name: str, step: int, **more: Any) -> None:
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
            "steps": step,
            "mean": self.mean,
            "std": self.std,
            "eval_crop": config.eval_crop,
        }
        state = {name: tensor.detach().cpu() for name, tensor in classifier.model.state_dict().items()}
        weights.write(config.out / name, state, facts | more)

    def last_scores(self, step: int) -> dict[str, Any]:
        """What `evaluation.json` says of this step; evaluated again where it says nothing."""
        path = self.config.out / SCORES_FILE
        scores = json.loads(path.read_text()) if path.exists() else {}
        if scores.get("step") != step:
            self(step)
            scores = json.loads(path.read_text())
        return dict(scores)

    def summary(self, final: dict[str, Any]) -> str:
        """The outcome in plain words."""
        per_class = final["per_class"]
        known = sorted((c["accuracy"], name) for name, c in per_class.items() if c["accuracy"] is not None)
        absent = [name for name, c in per_class.items() if c["accuracy"] is None]
        hardest = ", ".join(f"{name} {accuracy:.1%}" for accuracy, name in known[:_NAMED])
        top5 = f", {final['val_top5']:.1%} within its five best guesses" if "val_top5" in final else ""
        lines = [
            f"final     {final['val_top1']:.1%} of {final['images']:,} validation images right{top5}; "
            f"{final['val_mean_class']:.1%} as the mean over classes; best {self.best:.1%}",
            f"hardest   {hardest}",
            f"n/a       no validation images of {', '.join(absent)}" if absent else "",
            f"done: {self.config.out / weights.FILE} (best: {BEST_FILE}, each class: {SCORES_FILE})",
        ]
        return "\n".join(line for line in lines if line)


def best_so_far(out: Path) -> float:
    """The best top-1 in metrics.jsonl, of the steps up to where the run goes on; -1 if there is none."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((line["val_top1"] for line in map(json.loads, lines) if "val_top1" in line), default=-1.0)
