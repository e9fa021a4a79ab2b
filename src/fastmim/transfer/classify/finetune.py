"""Fine-tuning: a classifier trained end to end on labelled images, as a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastmim.config import takes
from fastmim.data import sources
from fastmim.data.labelled import Labelled, Subset, limit_labels, open_labelled
from fastmim.data.rand_augment import RandAugment
from fastmim.data.sources import Source
from fastmim.errors import RequestError
from fastmim.published import FINETUNE_RECIPES
from fastmim.system.run_directory import RunDirectory
from fastmim.training.logs import Logs
from fastmim.training.result import Result as RunResult
from fastmim.training.run import launch
from fastmim.transfer.classify.finetuner import Finetuner, Preparation, build_classifier
from fastmim.transfer.classify.settings import FinetuneConfig
from fastmim.transfer.classify.validation import ClassifierValidator
from fastmim.transfer.supervised import Supervised


@dataclass(frozen=True)
class Result(RunResult):
    """How a fine-tuning run ended."""

    top1: float | None = None
    """Share of the validation images that the final weights classify correctly; None before the end."""
    best_top1: float | None = None
    """The same of the best weights so far."""

    @property
    def best_weights(self) -> Path:
        """The classifier with the best top-1 so far."""
        return RunDirectory(self.out).best_weights


@takes(FinetuneConfig)
def finetune(*, overwrite: bool = False, dry_run: bool = False, **settings: Any) -> Result:
    """Train a classifier end to end, from pre-trained weights or from scratch.

    Arguments, resuming and errors are those of `fastmim.pretrain`, without `periodic` and with the fields of
    `FinetuneConfig` as settings (`fastmim finetune --help` lists them).

    Example:
        >>> tuned = fastmim.finetune(weights="runs/photos", data="labelled/", out="runs/tuned")
        >>> print(f"{tuned.top1:.1%}, at best {tuned.best_top1:.1%}")
    """
    return launch(Finetuning, settings, overwrite=overwrite, dry_run=dry_run)


class Finetuning(Supervised[FinetuneConfig]):
    """A classifier on labelled images, validated as it trains."""

    config_class = FinetuneConfig
    recipes = FINETUNE_RECIPES
    model: Finetuner

    def open_data(self) -> Source:
        config = self.config
        if not config.data:
            raise RequestError("data is not given; expected labelled images: --data labelled/")
        self.labelled: Labelled = open_labelled(
            config.data,
            config,
            inherited=self.inherited_range,
            val_data=config.val_data,
            val_share=config.val_share,
        )
        if config.num_labels is None:
            return self.labelled.train
        return limit_labels(self.labelled.train, config.num_labels, seed=config.seed)

    @property
    def val(self) -> Source:
        return self.labelled.val

    @property
    def classes(self) -> list[str]:
        return self.labelled.classes

    @property
    def faster_data(self) -> str:
        train = self.labelled.train
        return sources.faster(train.source if isinstance(train, Subset) else train)

    @property
    def eval_steps(self) -> int:
        """Steps between validations."""
        plan, every = self.plan, self.config.eval_every
        return plan.steps(every) if every else min(plan.total_steps, max(plan.steps("5%"), plan.steps_per_epoch))

    def build_model(self, *, resuming: bool) -> Finetuner:
        config, device, classes = self.config, self.plan.device, self.classes
        classifier = build_classifier(config, self.start, num_classes=len(classes), resuming=resuming)
        self.check_shards(classifier.model, classifier.name)
        policy = config.randaugment
        self.randaugment = None if policy == "none" else RandAugment(policy, fill=self.mean)
        self.preparation = Preparation.of(config, len(classes), mean=self.mean, std=self.std, device=device)
        return Finetuner(classifier, ema=config.ema).to(device)

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.preparation(batch)

    def transform(self) -> Callable[[Tensor, int], Tensor] | None:
        return self.randaugment

    def build_validator(self, logs: Logs) -> ClassifierValidator:
        return ClassifierValidator(
            metric="val_top1",
            **self.validation(logs),
            config=self.config,
            plan=self.plan,
            data=self.labelled,
            model=self.model,
        )

    def result(self, step: int) -> Result:
        return Result(self.config.out, step, self.plan.total_steps)

    def finish(self, step: int) -> Result:
        result, validator = self.result(step), self.validator
        best = validator.best if validator.best >= 0 else None
        if not result.finished:
            return dataclasses.replace(result, best_top1=best)
        final = self.final_scores(step)
        return dataclasses.replace(result, top1=final["val_top1"], best_top1=best)

    def describe(self) -> list[str]:
        config, plan, classifier, val = self.config, self.plan, self.model.classifier, self.labelled.val
        classes, labels = self.labelled.classes, self.source.labels
        counts = np.bincount([] if labels is None else labels, minlength=len(classes))
        num_missing = len(classes) - len(np.unique([] if val.labels is None else val.labels))
        millions = sum(p.numel() for p in classifier.parameters()) / 1e6
        return [
            f"data      {self.source.origin}: {len(self.source):,} images, {len(classes)} classes of "
            f"{counts.min():,} to {counts.max():,}; {plan.steps_per_epoch} steps an epoch",
            f"validate  {val.origin}: {len(val):,} images"
            + (f", none of {num_missing} of the classes" if num_missing else ""),
            *self.labelled.remarks,
            *self.start.describe(),
            f"network   {classifier.name}: {millions:.1f} M parameters at {config.img_size} px, "
            f"drop path {classifier.drop_path:g}, layer decay {config.layer_decay:g}",
            *plan.describe(),
            f"out       {config.out}; validated every {self.eval_steps} steps",
        ]
