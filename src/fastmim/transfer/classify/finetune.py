"""Fine-tuning: a classifier trained end to end on labelled images, as a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from fastmim.backbone.surgery import check_lists_blocks
from fastmim.data import sources
from fastmim.data.labelled import Labelled, Subset, limit_labels, open_labelled
from fastmim.data.mixing import Mix
from fastmim.data.rand_augment import RandAugment
from fastmim.data.sources import Source
from fastmim.errors import RequestError
from fastmim.recipes import FINETUNE_RECIPES
from fastmim.system.display import say
from fastmim.system.run_directory import RunDirectory
from fastmim.training import optim, run
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.logs import Logs
from fastmim.training.loop import Periodic
from fastmim.training.run import Task, launch
from fastmim.transfer.classify.finetuner import Finetuner, Preparation, build_classifier
from fastmim.transfer.classify.settings import FinetuneConfig
from fastmim.transfer.classify.validation import Validator
from fastmim.transfer.start import Start, find_start

_NUM_NAMED = 5


@dataclass(frozen=True)
class Result(run.Result):
    """How a fine-tuning run ended."""

    top1: float | None = None
    """Share of the validation images that the final weights classify correctly; None before the end."""
    best_top1: float | None = None
    """The same of the best weights so far."""

    @property
    def best_weights(self) -> Path:
        """The classifier with the best top-1 so far."""
        return RunDirectory(self.out).best_weights


def finetune(*, overwrite: bool = False, dry_run: bool = False, **settings: Any) -> Result:
    """Train a classifier end to end, from pre-trained weights or from scratch.

    Arguments, resuming and errors are those of `fastmim.pretrain`, with the fields of `FinetuneConfig` as settings
    (`fastmim finetune --help` lists them).
    """
    return launch(Finetuning, settings, overwrite=overwrite, dry_run=dry_run)


class Finetuning(Task[FinetuneConfig]):
    """A classifier on labelled images, validated as it trains."""

    config_class = FinetuneConfig
    recipes = FINETUNE_RECIPES
    model: Finetuner

    def open_data(self) -> Source:
        config = self.config
        if not config.data:
            raise RequestError("data is not given; expected labelled images: --data labelled/")
        self.fresh_start = self._find_start() if config.range == "auto" else None
        self.labelled: Labelled = open_labelled(
            config.data,
            config,
            inherited=self.fresh_start.range if self.fresh_start else None,
            val_data=config.val_data,
            val_share=config.val_share,
        )
        if config.num_labels is None:
            return self.labelled.train
        return limit_labels(self.labelled.train, config.num_labels, seed=config.seed)

    def _find_start(self) -> Start:
        config = self.config
        return find_start(config.weights, backbone=config.backbone, backbone_args=config.backbone_args)

    @property
    def num_images(self) -> int:
        return len(self.source) + len(self.labelled.val)

    @property
    def faster_data(self) -> str:
        train = self.labelled.train
        return sources.faster(train.source if isinstance(train, Subset) else train)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        return {"data": sources.fingerprint(self.source), "val_data": sources.fingerprint(self.labelled.val)}

    @property
    def eval_steps(self) -> int:
        """Steps between validations."""
        plan, every = self.plan, self.config.eval_every
        return plan.steps(every) if every else min(plan.total_steps, max(plan.steps("5%"), plan.steps_per_epoch))

    def sizes(self) -> tuple[tuple[int, float], ...]:
        return ((self.config.img_size, 1.0),)

    def check_resumable(self, found: Checkpoint) -> None:
        super().check_resumable(found)
        classes, expected = self.labelled.classes, found.manifest["classes"]
        if expected != classes:
            raise RequestError(
                f"data is {self.config.data} with classes {', '.join(classes[:_NUM_NAMED])}...; expected those that "
                f"the run in {self.config.out} began with, {', '.join(expected[:_NUM_NAMED])}...: take another --out"
            )

    def build(self, found: Checkpoint | None) -> None:
        config, device, classes = self.config, self.plan.device, self.labelled.classes
        self.start = Start(**found.manifest["start"]) if found else self.fresh_start or self._find_start()
        classifier = build_classifier(config, self.start, num_classes=len(classes), resuming=bool(found))
        if config.shard:
            check_lists_blocks(classifier.model, classifier.name, "shard")
        self.model = Finetuner(classifier, ema=config.ema).to(device)
        self.mean, self.std = config.mean or tuple(self.start.mean), config.std or tuple(self.start.std)
        policy = config.randaugment
        self.randaugment = None if policy == "none" else RandAugment(policy, fill=self.mean)
        self.preparation = Preparation(
            mean=torch.tensor(self.mean, device=device),
            std=torch.tensor(self.std, device=device),
            flip=config.flip,
            reprob=config.reprob,
            mix=Mix(
                mixup=config.mixup,
                cutmix=config.cutmix,
                smoothing=config.smoothing,
                num_classes=len(classes),
                device=device,
            ),
        )
        self.build_optimizer(
            self.model
        )  # refuses a model whose layers timm cannot tell apart before anything is written

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.preparation(batch)

    def transform(self) -> Callable[[Tensor, int], Tensor] | None:
        return self.randaugment

    def build_optimizer(self, model: nn.Module) -> AdamW:
        assert isinstance(model, Finetuner)
        groups = model.classifier.parameter_groups(
            weight_decay=self.config.weight_decay, layer_decay=self.config.layer_decay
        )
        return optim.adamw(groups, betas=self.config.betas)

    def facts(self) -> dict[str, Any]:
        return {
            "num_images": self.plan.num_images,
            "fingerprints": self.fingerprints,
            "classes": self.labelled.classes,
            "start": dataclasses.asdict(self.start),
            "stages": [dataclasses.asdict(stage) for stage in self.plan.stages],
        }

    def periodic(self, logs: Logs) -> list[Periodic]:
        self.validator = Validator(
            config=self.config,
            plan=self.plan,
            data=self.labelled,
            model=self.model,
            mean=self.mean,
            std=self.std,
            bad_images=self.bad_images,
            say=logs.say,
        )
        found = super().periodic(logs)
        validating = (self.eval_steps, self.world.on_main(self.validator))
        return [*found, validating, *self.reporting(f"{self.eval_steps} steps", logs)]

    def result(self, step: int) -> Result:
        return Result(self.config.out, step, self.plan.total_steps)

    def finish(self, step: int) -> Result:
        result, validator = self.result(step), self.validator
        best = validator.best if validator.best >= 0 else None
        if not result.finished:
            return dataclasses.replace(result, best_top1=best)
        validator.save(result.weights, step)
        final = validator.last_scores(step)
        say(self.console, validator.summary(final))
        return dataclasses.replace(result, top1=final["val_top1"], best_top1=best)

    def describe(self) -> list[str]:
        config, plan, classifier, val = self.config, self.plan, self.model.classifier, self.labelled.val
        classes, labels = self.labelled.classes, self.source.labels
        counts = np.bincount([] if labels is None else labels, minlength=len(classes))
        num_missing = len(classes) - len(np.unique([] if val.labels is None else val.labels))
        millions = sum(p.numel() for p in classifier.parameters()) / 1e6
        lines = [
            f"data      {self.source.origin}: {len(self.source):,} images, {len(classes)} classes of "
            f"{counts.min():,} to {counts.max():,}; {plan.steps_per_epoch} steps an epoch",
            f"validate  {val.origin}: {len(val):,} images"
            + (f", none of {num_missing} of the classes" if num_missing else ""),
            *self.labelled.remarks,
            f"weights   {self.start.origin}",
            f"network   {classifier.name}: {millions:.1f} M parameters at {config.img_size} px, "
            f"drop path {classifier.drop_path:g}, layer decay {config.layer_decay:g}",
            *plan.describe(),
            f"out       {config.out}; validated every {self.eval_steps} steps",
        ]
        if self.start.fresh:
            fresh = f"fresh     {', '.join(self.start.fresh)}: left out of pre-training, so they start untrained"
            lines.insert(lines.index(f"weights   {self.start.origin}") + 1, fresh)
        return lines
