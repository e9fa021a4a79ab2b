"""From a config to a trained backbone: builds data, model and optimiser, and hands them to the loop."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastmim import config as configs
from fastmim import weights
from fastmim.data import augment, loader, sources
from fastmim.data.bad_images import BadImages
from fastmim.data.labelled import Labelled, open_labelled
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError
from fastmim.method import pictures
from fastmim.method.build import build_model
from fastmim.method.mim import MIM
from fastmim.method.settings import PretrainConfig
from fastmim.recipes import RECIPES
from fastmim.system import devices
from fastmim.training import checkpoint, loop, micro_batch, optim, run_directory, schedule
from fastmim.training.logs import Logs
from fastmim.training.schedule import Stage
from fastmim.transfer.features import online_probe

PICTURED = 6
DEFAULT_EPOCHS = 200.0


@dataclass(frozen=True)
class Plan:
    """What a config comes to on these images and this machine."""

    num_images: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    picture_every: int | None
    """Steps between reconstruction pictures; None for never."""
    probe_every: int
    peak_lr: float
    stages: list[Stage]
    device: torch.device
    bf16: bool
    compile: bool
    num_workers: int


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    out: Path
    step: int
    total_steps: int

    @property
    def finished(self) -> bool:
        """False if a signal stopped it; the same call resumes."""
        return self.step == self.total_steps

    @property
    def weights(self) -> Path:
        """The backbone, once finished."""
        return self.out / weights.FILE


def pretrain(*, overwrite: bool = False, dry_run: bool = False, **settings: Any) -> Result:
    """Pre-train a backbone by masked image modeling (FastMIM).

    The same call with the same `out` resumes an interrupted run.

    Args:
        overwrite: Delete the run that `out` holds and start anew.
        dry_run: Print the resolved config and the plan, and stop.
        settings: Fields of `PretrainConfig` (`fastmim pretrain --help` lists them).

    Raises:
        RequestError: the request is wrong.
        RunError: the run failed.
    """
    console = Console(highlight=False)
    opening = run_directory.opened(
        PretrainConfig, settings, recipes=RECIPES, overwrite=overwrite, dry_run=dry_run, console=console
    )
    with opening as config:
        return _pretrain(config, overwrite, dry_run, console)


def _pretrain(config: PretrainConfig, overwrite: bool, dry_run: bool, console: Console) -> Result:
    source = sources.open_source(config.data)
    labelled = open_labelled(config.probe) if config.probe else None
    plan = make_plan(config, source)
    torch.manual_seed(config.seed)
    model = build_model(config).to(plan.device)
    if config.micro_batch == "auto":
        plan = with_stages(config, plan, micro_batch=try_micro_batch(config, plan, model))
    if dry_run:
        console.print(configs.to_yaml(config), markup=False, soft_wrap=True)
    describe(config, plan, model, console)
    if dry_run:
        return Result(config.out, 0, plan.total_steps)
    found = None if overwrite else run_directory.resume_point(config, num_images=plan.num_images)
    if config.init and config.init != "timm" and not found:
        weights.load_into(model.backbone, config.init)
    run_directory.prepare(config, overwrite=overwrite)
    if found:
        console.print(f"resuming at step {found.step} of {plan.total_steps}")
    return _Pretraining(config, plan, source, labelled, model, console).train(found)


def make_plan(config: PretrainConfig, source: sources.Source) -> Plan:
    """Turn every duration into steps and every `auto` into a decision.

    Raises:
        RequestError: fewer images than one batch, a device that is not there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError("WORLD_SIZE is above 1; several processes are not supported yet: start one process")
    steps_per_epoch = loader.steps_per_epoch(source, config.batch_size)
    total = config.steps or max(1, round((config.epochs or DEFAULT_EPOCHS) * steps_per_epoch))
    steps = functools.partial(
        schedule.to_steps, total_steps=total, steps_per_epoch=steps_per_epoch, batch_size=config.batch_size
    )
    device = devices.resolve_device(config.device)
    plan = Plan(
        num_images=len(source),
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=min(total, steps(config.warmup)),
        picture_every=None if config.picture_every == "never" else max(1, steps(config.picture_every)),
        probe_every=max(1, steps(config.probe_every)),
        peak_lr=config.lr * config.batch_size / 256,
        stages=[],
        device=device,
        bf16=devices.resolve_bf16(config.precision, device),
        compile=device.type == "cuda" if config.compile is None else config.compile,
        num_workers=devices.resolve_workers(config.num_workers),
    )
    return with_stages(config, plan, micro_batch=None if config.micro_batch == "auto" else config.micro_batch)


def with_stages(config: PretrainConfig, plan: Plan, *, micro_batch: int | None) -> Plan:
    """The plan with its stages for at most so many images at once."""
    stages = schedule.plan_stages(
        config.sizes(), total_steps=plan.total_steps, device_batch=config.batch_size, micro_batch=micro_batch
    )
    return dataclasses.replace(plan, stages=stages)


def try_micro_batch(config: PretrainConfig, plan: Plan, model: MIM) -> int:
    """What `micro_batch="auto"` comes to on this device; RequestError where nothing fits."""
    return micro_batch.largest_micro_batch(
        model,
        batch_size=config.batch_size,
        img_size=plan.stages[0].size,
        prepare=preparation(plan.device),
        device=plan.device,
        bf16=plan.bf16,
    )


def preparation(device: torch.device) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The device's half of the augmentation, for ImageNet's mean and deviation."""
    mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return functools.partial(augment.prepare, mean=mean, std=std)


def describe(config: PretrainConfig, plan: Plan, model: MIM, console: Console) -> None:
    """Say what will happen, in a few lines."""
    backbone, blocks = model.backbone, (model.backbone.img_size // model.block) ** 2
    millions = sum(p.numel() for p in backbone.parameters()) / 1e6
    depth = f", first {backbone.trained_blocks} of {backbone.num_blocks} blocks" if config.encoder_depth < 1 else ""
    chosen = " (auto)" if config.decoder == "auto" else ""
    stages = ", ".join(f"{s.size} px for {s.stop - s.start} steps" for s in plan.stages)
    micro = ", ".join(str(config.batch_size // s.accumulation) for s in plan.stages)
    lines = [
        f"data      {config.data}: {plan.num_images:,} images, {plan.steps_per_epoch} steps an epoch",
        f"backbone  {config.backbone}: {millions:.1f} M parameters, stride {backbone.stride}, width {backbone.width}"
        + depth,
        f"masking   blocks of {model.block} px, {blocks} an image, {config.mask_ratio:.0%} hidden, {config.masking}",
        f"target    {config.target}, decoder {model.decoder.extra_repr()}{chosen}, {config.loss} loss",
        f"length    {plan.total_steps} steps ({plan.total_steps / plan.steps_per_epoch:.1f} epochs): {stages}",
        f"batch     {config.batch_size} images, {micro} at once; peak learning rate {plan.peak_lr:.2e}",
        f"device    {plan.device}, {'bf16' if plan.bf16 else 'float32'}, {'compiled' if plan.compile else 'eager'}, "
        f"{plan.num_workers} data workers",
    ]
    if config.probe:
        lines.append(f"probe     {config.probe}, every {plan.probe_every} steps")
    console.print("\n".join([*lines, f"out       {config.out}"]), soft_wrap=True)


class _Pretraining:
    """One run: what `pretrain` has built, wired to the loop."""

    def __init__(
        self,
        config: PretrainConfig,
        plan: Plan,
        source: sources.Source,
        labelled: Labelled | None,
        model: MIM,
        console: Console,
    ) -> None:
        self.config, self.plan, self.source, self.labelled, self.model = config, plan, source, labelled, model
        self.console = console
        say = functools.partial(console.print, soft_wrap=True, markup=False)
        self.bad_images = BadImages(config.out, num_images=plan.num_images, max_share=config.max_bad_share, say=say)

    def train(self, found: checkpoint.Checkpoint | None) -> Result:
        """Train from a checkpoint or the start; write the backbone at the end."""
        config, plan = self.config, self.plan
        logs = run_directory.open_logs(config, total_steps=plan.total_steps, resume_from=found, console=self.console)
        try:
            step = self._fit(found, logs)
            if self.bad_images:
                logs.say(self.bad_images.describe())
        finally:
            logs.close()
        if step == plan.total_steps:
            about = {
                "recipe": config.recipe,
                "data": config.data,
                "steps": step,
                "mean": IMAGENET_MEAN,
                "std": IMAGENET_STD,
            }
            weights.save(config.out / weights.FILE, self.model.backbone, about=about)
            self.console.print(f"done: {config.out / weights.FILE}", soft_wrap=True)
        return Result(config.out, step, plan.total_steps)

    def _fit(self, found: checkpoint.Checkpoint | None, logs: Logs) -> int:
        config, plan = self.config, self.plan
        stages = [dataclasses.asdict(stage) for stage in plan.stages]
        periodic: list[Any] = [(plan.picture_every, self.draw_sample)] if plan.picture_every else []
        if self.labelled:
            periodic.append((plan.probe_every, functools.partial(self.probe, self.labelled, logs)))
        return loop.fit(
            self.model,
            stages=plan.stages,
            batches=self.batches,
            prepare=preparation(plan.device),
            build_optimizer=functools.partial(optim.build, weight_decay=config.weight_decay, betas=config.betas),
            learning_rate=functools.partial(
                schedule.learning_rate, peak=plan.peak_lr, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps
            ),
            logs=logs,
            run=loop.Run.of(
                config,
                plan,
                about={"num_images": plan.num_images, "stages": stages},
                faster_data=sources.faster(self.source),
            ),
            resume_from=found,
            periodic=periodic,
        )

    def batches(self, stage: Stage, first_step: int) -> Generator[loop.Batch]:
        """The micro-batches of a stage from a step on, their unreadable images reported."""
        stream = loader.load(
            self.source,
            size=stage.size,
            seed=self.config.seed,
            global_batch=self.config.batch_size,
            first_step=first_step,
            last_step=stage.stop,
            accumulation=stage.accumulation,
            num_workers=self.plan.num_workers,
            crop_scale=self.config.crop_scale,
            pin_memory=self.plan.device.type == "cuda",
        )
        with closing(stream):
            for batch in stream:
                self.bad_images.update(batch["bad"], num_seen=len(batch["keys"]))
                yield {"images": batch["images"], "keys": batch["keys"]}

    def draw_sample(self, step: int) -> dict[str, float]:
        """Draw `step_N.png`: the same few images and masks every time, as the model sees them now."""
        caption, folder = f"step {step}", self.config.out / "samples"
        picture = pictures.draw(self.model, self.source, num_images=PICTURED, seed=self.config.seed, caption=caption)
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"step_{step:09d}.png")
        return {}

    def probe(self, labelled: Labelled, logs: Logs, step: int) -> dict[str, float]:
        """Measure held-out loss, kNN and effective rank of the model as it is now, and say them."""
        metrics = online_probe.measure(
            self.model,
            labelled,
            seed=self.config.seed,
            batch_size=min(256, self.config.batch_size // self.plan.stages[0].accumulation),
            num_workers=self.plan.num_workers,
            bf16=self.plan.bf16,
        )
        logs.say(f"probe at step {step}: {online_probe.describe(metrics)}")
        return metrics
