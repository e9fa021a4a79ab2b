"""What a fine-tuning config comes to on these images and this machine."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import torch

from fastmim.errors import RequestError
from fastmim.system import devices
from fastmim.training import schedule
from fastmim.training.schedule import Stage
from fastmim.transfer.classify.settings import FinetuneConfig

DEFAULT_EPOCHS = 100.0


@dataclass(frozen=True)
class Plan:
    """What a config comes to on these images and this machine."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    eval_every: int
    """Steps between evaluations."""
    peak_lr: float
    stage: Stage
    device: torch.device
    bf16: bool
    compile: bool
    num_workers: int


def make_plan(config: FinetuneConfig, num_images: int) -> Plan:
    """Turn every duration into steps and every `auto` into a decision.

    Raises:
        RequestError: fewer images than one batch, a device that is not there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError("WORLD_SIZE is above 1; fine-tuning runs in one process: start it without torchrun")
    if num_images < config.batch_size:
        raise RequestError(
            f"{num_images:,} training images are fewer than one batch of {config.batch_size:,}: "
            f"lower --batch-size to {num_images} or less"
        )
    steps_per_epoch = num_images // config.batch_size
    total = config.steps or max(1, round((config.epochs or DEFAULT_EPOCHS) * steps_per_epoch))
    steps = functools.partial(
        schedule.to_steps, total_steps=total, steps_per_epoch=steps_per_epoch, batch_size=config.batch_size
    )
    device = devices.resolve_device(config.device)
    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=min(total, steps(config.warmup)),
        eval_every=max(1, steps(config.eval_every)),
        peak_lr=config.lr * config.batch_size / 256,
        stage=make_stage(config, total, None if config.micro_batch == "auto" else config.micro_batch),
        device=device,
        bf16=devices.resolve_bf16(config.precision, device),
        compile=device.type == "cuda" if config.compile is None else config.compile,
        num_workers=devices.resolve_workers(config.num_workers),
    )


def make_stage(config: FinetuneConfig, total_steps: int, micro_batch: int | None) -> Stage:
    """The run's one stage, at most `micro_batch` images at once."""
    [stage] = schedule.plan_stages(
        ((config.img_size, 1.0),), total_steps=total_steps, device_batch=config.batch_size, micro_batch=micro_batch
    )
    return stage
