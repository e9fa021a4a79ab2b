"""From labelled images and pre-trained weights to a classifier: builds them, and hands them to the loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.optim import AdamW

from fastmim import weights
from fastmim.data import loader, sources
from fastmim.data.bad_images import BadImages
from fastmim.data.labelled import Labelled, limit_labels, open_labelled
from fastmim.data.mixing import Mix
from fastmim.data.rand_augment import RandAugment
from fastmim.errors import RequestError
from fastmim.recipes import FINETUNE_RECIPES
from fastmim.training import checkpoint, loop, micro_batch, optim, run_directory, schedule
from fastmim.training.logs import Logs
from fastmim.training.schedule import Stage
from fastmim.transfer.classify.finetuner import Finetuner, Preparation
from fastmim.transfer.classify.plan import Plan, make_plan, make_stage
from fastmim.transfer.classify.settings import FinetuneConfig
from fastmim.transfer.classify.start import Start, build, find_start
from fastmim.transfer.classify.validation import BEST_FILE, Validator, best_so_far

_NAMED = 5


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    out: Path
    step: int
    total_steps: int
    top1: float | None = None
    """Share of the validation images that the final weights classify rightly; None before the end."""
    best_top1: float | None = None
    """The same of the best weights so far."""

    @property
    def finished(self) -> bool:
        """False if a signal stopped it; the same call resumes."""
        return self.step == self.total_steps

    @property
    def weights(self) -> Path:
        """The final classifier, once finished."""
        return self.out / weights.FILE

    @property
    def best_weights(self) -> Path:
        """The classifier with the best top-1 so far."""
        return self.out / BEST_FILE


def finetune(*, overwrite: bool = False, dry_run: bool = False, **settings: Any) -> Result:
    """Train a classifier end to end, from pre-trained weights or from nothing.

    The same call with the same `out` resumes an interrupted run.

    Args:
        overwrite: Delete the run that `out` holds and start anew.
        dry_run: Print the resolved config and the plan, and stop.
        settings: Fields of `FinetuneConfig` (`fastmim finetune --help` lists them).

    Raises:
        RequestError: the request is wrong.
        RunError: the run failed.
    """
    console = Console(highlight=False)
    opening = run_directory.opened(
        FinetuneConfig, settings, recipes=FINETUNE_RECIPES, overwrite=overwrite, dry_run=dry_run, console=console
    )
    with opening as config:
        return _finetune(config, overwrite, dry_run, console)


def _finetune(config: FinetuneConfig, overwrite: bool, dry_run: bool, console: Console) -> Result:
    data = _open_data(config)
    plan = make_plan(config, len(data.train))
    found = None if overwrite else _resume_point(config, data)
    start = Start(**found.manifest["start"]) if found else find_start(config)
    torch.manual_seed(config.seed)
    classifier = build(config, start, num_classes=len(data.classes), resuming=bool(found))
    run = _Finetuning(config, plan, data, start, Finetuner(classifier, ema=config.ema).to(plan.device), console)
    run.describe()
    if dry_run:
        return Result(config.out, 0, plan.total_steps)
    run_directory.prepare(config, overwrite=overwrite)
    if found:
        console.print(f"resuming at step {found.step} of {plan.total_steps}")
    return run.train(found)


def _open_data(config: FinetuneConfig) -> Labelled:
    if not config.data:
        raise RequestError("data is not given; expected labelled images: --data labelled/")
    data = open_labelled(config.data, val_data=config.val_data, val_share=config.val_share)
    if config.num_labels is not None:
        few = limit_labels(data.train, config.num_labels, seed=config.seed)
        data = dataclasses.replace(data, train=few)
    return data


def _resume_point(config: FinetuneConfig, data: Labelled) -> checkpoint.Checkpoint | None:
    found = run_directory.resume_point(config, num_images=len(data.train))
    if found and found.manifest["classes"] != data.classes:
        raise RequestError(
            f"data is {config.data} with classes {', '.join(data.classes[:_NAMED])}...; expected those that the run in "
            f"{config.out} began with, {', '.join(found.manifest['classes'][:_NAMED])}...: take another --out"
        )
    return found


class _Finetuning:
    """One run: what `finetune` has built, wired to the loop."""

    def __init__(
        self, config: FinetuneConfig, plan: Plan, data: Labelled, start: Start, model: Finetuner, console: Console
    ) -> None:
        self.config, self.plan, self.data, self.start, self.model = config, plan, data, start, model
        self.console = console
        num_images = len(data.train) + len(data.val)
        say = functools.partial(console.print, soft_wrap=True, markup=False)
        self.bad_images = BadImages(config.out, num_images=num_images, max_share=config.max_bad_share, say=say)
        self.mean, self.std = config.mean or tuple(start.mean), config.std or tuple(start.std)
        self.randaugment = None if config.randaugment == "none" else RandAugment(config.randaugment, fill=self.mean)
        self.plan = dataclasses.replace(plan, stage=self.stage())
        self.optimizer(model)  # refuses layers that timm cannot tell apart before there is a run directory

    def describe(self) -> None:
        """Say what will happen, in a few lines."""
        config, plan, data, classifier = self.config, self.plan, self.data, self.model.classifier
        millions = sum(p.numel() for p in classifier.parameters()) / 1e6
        counts = np.bincount(data.train.labels if data.train.labels is not None else [], minlength=len(data.classes))
        missing = len(data.classes) - len(np.unique(data.val.labels if data.val.labels is not None else []))
        lines = [
            f"data      {data.train.origin}: {len(data.train):,} images, {len(data.classes)} classes of "
            f"{counts.min():,} to {counts.max():,}; {plan.steps_per_epoch} steps an epoch",
            f"validate  {data.val.origin}: {len(data.val):,} images"
            + (f", none of {missing} of the classes" if missing else ""),
            f"weights   {self.start.origin}",
            f"network   {classifier.name}: {millions:.1f} M parameters at {config.img_size} px, "
            f"drop path {classifier.drop_path:g}",
            f"length    {plan.total_steps} steps ({plan.total_steps / plan.steps_per_epoch:.1f} epochs), "
            f"validated every {plan.eval_every}",
            f"batch     {config.batch_size} images, {config.batch_size // plan.stage.accumulation} at once; peak "
            f"learning rate {plan.peak_lr:.2e}, {config.layer_decay:g} times that for each block below",
            f"device    {plan.device}, {'bf16' if plan.bf16 else 'float32'}, "
            f"{'compiled' if plan.compile else 'eager'}, {plan.num_workers} data workers",
            f"out       {config.out}",
        ]
        if self.start.fresh:
            lines.insert(
                3, f"fresh     {', '.join(self.start.fresh)}: left out of pre-training, so they start untrained"
            )
        self.console.print("\n".join(lines), soft_wrap=True, markup=False)

    def train(self, found: checkpoint.Checkpoint | None) -> Result:
        """Train from a checkpoint or the start; write the final weights at the end."""
        config, plan = self.config, self.plan
        logs = run_directory.open_logs(config, total_steps=plan.total_steps, resume_from=found, console=self.console)
        validator = Validator(
            config=config,
            plan=plan,
            data=self.data,
            model=self.model,
            mean=self.mean,
            std=self.std,
            bad_images=self.bad_images,
            say=logs.say,
            best=best_so_far(config.out),
        )
        try:
            step = self._fit(found, logs, validator)
            if self.bad_images:
                logs.say(self.bad_images.describe())
        finally:
            logs.close()
        if step < plan.total_steps:
            return Result(config.out, step, plan.total_steps, best_top1=validator.best if validator.best >= 0 else None)
        validator.save(weights.FILE, step)
        final = validator.last_scores(step)
        self.console.print(validator.summary(final), soft_wrap=True, markup=False)
        return Result(config.out, step, plan.total_steps, top1=final["val_top1"], best_top1=validator.best)

    def _fit(self, found: checkpoint.Checkpoint | None, logs: Logs, validator: Validator) -> int:
        config, plan = self.config, self.plan
        periodic: list[Any] = [(1, self.model.average)] if config.ema else []
        return loop.fit(
            self.model,
            stages=[plan.stage],
            batches=self.batches,
            prepare=self.preparation(),
            build_optimizer=self.optimizer,
            learning_rate=functools.partial(
                schedule.learning_rate, peak=plan.peak_lr, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps
            ),
            logs=logs,
            run=loop.Run.of(
                config,
                plan,
                about={
                    "num_images": len(self.data.train),
                    "classes": self.data.classes,
                    "start": dataclasses.asdict(self.start),
                    "stages": [dataclasses.asdict(plan.stage)],
                },
                faster_data=sources.faster(self.data.train),
            ),
            resume_from=found,
            periodic=[*periodic, (plan.eval_every, validator)],
        )

    def preparation(self) -> Preparation:
        """The device's half of the augmentation."""
        config, device = self.config, self.plan.device
        mean, std = (torch.tensor(values, device=device) for values in (self.mean, self.std))
        mix = Mix(
            mixup=config.mixup,
            cutmix=config.cutmix,
            smoothing=config.smoothing,
            num_classes=len(self.data.classes),
            device=device,
        )
        return Preparation(mean=mean, std=std, flip=config.flip, reprob=config.reprob, mix=mix)

    def stage(self) -> Stage:
        """The plan's stage, with the images at once that fit where that is left to us."""
        if self.config.micro_batch != "auto":
            return self.plan.stage
        found = micro_batch.largest_micro_batch(
            self.model,
            batch_size=self.config.batch_size,
            img_size=self.plan.stage.size,
            prepare=self.preparation(),
            device=self.plan.device,
            bf16=self.plan.bf16,
            labelled=True,
        )
        return make_stage(self.config, self.plan.total_steps, found)

    def batches(self, stage: Stage, first_step: int) -> Generator[loop.Batch]:
        """The training batches from a step on."""
        stream = loader.load(
            self.data.train,
            size=stage.size,
            seed=self.config.seed,
            global_batch=self.config.batch_size,
            first_step=first_step,
            last_step=stage.stop,
            accumulation=stage.accumulation,
            num_workers=self.plan.num_workers,
            crop_scale=self.config.crop_scale,
            pin_memory=self.plan.device.type == "cuda",
            transform=self.randaugment,
        )
        with closing(stream):
            for batch in stream:
                self.bad_images.update(batch.pop("bad"), num_seen=len(batch["keys"]))
                yield {key: batch[key] for key in ("images", "keys", "labels")}

    def optimizer(self, model: torch.nn.Module) -> AdamW:
        """AdamW with a learning rate for each block."""
        assert isinstance(model, Finetuner)
        groups = model.classifier.parameter_groups(
            weight_decay=self.config.weight_decay, layer_decay=self.config.layer_decay
        )
        return optim.adamw(groups, betas=self.config.betas)
