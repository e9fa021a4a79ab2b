"""The plan of a run: its config resolved for the data and the machine, durations in steps, every `auto` decided."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from fastmim.data.order import steps_per_epoch
from fastmim.data.sources import Source
from fastmim.errors import RequestError
from fastmim.system import devices
from fastmim.training import schedule
from fastmim.training.schedule import Decay, Stage
from fastmim.training.settings import TrainConfig
from fastmim.training.world import ALONE, World

Config = TypeVar("Config", bound=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in steps, on the device of this process."""

    num_images: int
    """Training images."""
    batch_size: int
    """Images per optimiser step, over all devices; copies of an image count each."""
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    peak_lr: float
    drop_step: int | None = None
    """Where the learning rate falls to a tenth; None for `lr_decay`."""
    lr_decay: Decay = "cosine"
    stages: list[Stage]
    device: torch.device
    copies: int = 1
    """Copies of each image in a step."""
    bf16: bool
    """Autocast the forward pass to bfloat16."""
    notes: Sequence[str] = ()
    """What the user should know about these choices, a line each."""
    compile: bool
    cuda_graphs: bool = False
    """Replay the compiled step from a recording, in stages that take their batches at once."""
    shard: bool = False
    """Divide the model's state among the processes."""
    num_workers: int
    world: World = ALONE
    """The processes that share each step."""

    def steps(self, duration: str) -> int:
        """Convert a duration such as `10%` or `5 epochs` to steps, at least 1."""
        found = schedule.to_steps(
            duration,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.images_per_step,
        )
        return max(1, found)

    @property
    def images_per_step(self) -> int:
        """Different images per optimiser step, over all devices."""
        return self.batch_size // self.copies

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step about to be made, counted from 0."""
        return schedule.learning_rate(
            step,
            peak=self.peak_lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
            drop_step=self.drop_step,
            decay=self.lr_decay,
        )

    def with_stages(self, sizes: Sequence[tuple[int, float]], *, micro_batch: int | None) -> Plan:
        """Return the plan with the stages of these (image size, share of the run) pairs.

        Args:
            micro_batch: The most images that a device takes at once at the first size, copies included; None for its
                whole share.

        Raises:
            RequestError: the batch does not divide among the processes, or the copies of an image into micro-batches.
        """
        if micro_batch is not None and micro_batch < self.copies:
            raise RequestError(
                f"micro_batch is {micro_batch}; expected at least {self.copies}, as the copies of an image stay "
                f"together: raise it, or lower masks_per_image"
            )
        stages = schedule.plan_stages(
            sizes,
            total_steps=self.total_steps,
            device_batch=self.share,
            micro_batch=None if micro_batch is None else micro_batch // self.copies,
        )
        return dataclasses.replace(self, stages=stages)

    @property
    def share(self) -> int:
        """Different images of a step for one process.

        Raises:
            RequestError: the batch does not divide among the processes.
        """
        return self.world.share(self.batch_size, copies=self.copies)

    def describe(self) -> list[str]:
        """The lines of the console output that all runs share."""
        stages = ", ".join(f"{s.size} px for {s.stop - s.start} steps" for s in self.stages)
        size = self.world.size
        micro = ", ".join(str(self.share * self.copies // s.accumulation) for s in self.stages)
        copies = f" ({self.copies} copies of {self.images_per_step})" if self.copies > 1 else ""
        several = f" on each of {size} processes" if size > 1 else ""
        return [
            f"length    {self.total_steps} steps ({self.total_steps / self.steps_per_epoch:.1f} epochs): {stages}",
            f"batch     {self.batch_size} images{copies}, {micro} at once{several}; "
            f"peak learning rate {self.peak_lr:.2e}",
            f"device    {self.device}, {'bf16' if self.bf16 else 'float32'}, "
            f"{'compiled' if self.compile else 'eager'}{', CUDA graphs' if self.cuda_graphs else ''}, "
            f"{self.num_workers} data workers" + (f"; weights divided among {size} processes" if self.shard else ""),
            *self.notes,
        ]


def fitting(config: Config, num_images: int, world: World) -> Config:
    """The config; with all images as a batch if there are fewer than the default, and nobody named another."""
    if "batch_size" in config.given or not world.size <= num_images < config.images_per_step:
        return config
    copies = config.batch_size // config.images_per_step
    return dataclasses.replace(config, batch_size=num_images // world.size * world.size * copies)


def make_plan(config: TrainConfig, source: Source, *, sizes: Sequence[tuple[int, float]], world: World = ALONE) -> Plan:
    """Resolve a config for its training images and this machine.

    Args:
        config: The settings of the run.
        source: The training images.
        sizes: (image size, share of the run) of each stage, in order.
        world: The processes that share each step.

    Raises:
        RequestError: fewer images than one batch, a batch that does not divide among the processes, or an unavailable
            device.
    """
    images_per_step = config.images_per_step
    per_epoch = steps_per_epoch(source, images_per_step)
    epochs = config.epochs or config.DEFAULT_EPOCHS
    total = config.steps or max(1, round(min(epochs * per_epoch, sys.maxsize)))
    warmup, drop = (
        schedule.to_steps(duration, total_steps=total, steps_per_epoch=per_epoch, batch_size=images_per_step)
        for duration in (config.warmup, config.lr_drop or "100%")
    )
    device = world.device(config.device)
    compile = device.type == "cuda" if config.compile is None else config.compile
    if config.cuda_graphs and not (compile and device.type == "cuda" and world.size == 1):
        raise RequestError(
            f"cuda_graphs is True on {device} for {world.size} process{'es' if world.size > 1 else ''}"
            f"{'' if compile else ' without compilation'}; expected one on a CUDA device, compiled: drop it"
        )
    plan = Plan(
        num_images=len(source),
        batch_size=config.batch_size,
        copies=config.batch_size // images_per_step,
        steps_per_epoch=per_epoch,
        total_steps=total,
        warmup_steps=min(total, warmup),
        peak_lr=config.lr * config.batch_size / 256,
        drop_step=drop if config.lr_drop else None,
        lr_decay=config.lr_decay,
        stages=[],
        device=device,
        bf16=devices.resolve_bf16(config.precision, device),
        notes=devices.precision_notes(config.precision, device),
        compile=compile,
        cuda_graphs=config.cuda_graphs,
        shard=config.shard and world.size > 1,
        num_workers=devices.resolve_workers(config.num_workers, sharing=world.local_size),
        world=world,
    )
    return plan.with_stages(sizes, micro_batch=None if config.micro_batch == "auto" else config.micro_batch)
