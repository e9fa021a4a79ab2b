"""The plan of a run: its config resolved for the data and the machine, durations in steps, every `auto` decided."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastmim.data.order import steps_per_epoch
from fastmim.data.sources import Source
from fastmim.system import devices
from fastmim.training import schedule
from fastmim.training.schedule import Decay, Stage
from fastmim.training.settings import TrainConfig
from fastmim.training.world import ALONE, World


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in steps, on the device of this process."""

    num_images: int
    """Training images."""
    batch_size: int
    """Images per optimiser step, over all devices."""
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    peak_lr: float
    drop_step: int | None = None
    """Where the learning rate falls to a tenth; None for `lr_decay`."""
    lr_decay: Decay = "cosine"
    stages: list[Stage]
    device: torch.device
    bf16: bool
    """Autocast the forward pass to bfloat16."""
    notes: Sequence[str] = ()
    """What the user should know about these choices, a line each."""
    compile: bool
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
            batch_size=self.batch_size,
        )
        return max(1, found)

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
            micro_batch: The most images that a device takes at once at the first size; None for its whole share.

        Raises:
            RequestError: the batch does not divide among the processes.
        """
        stages = schedule.plan_stages(
            sizes,
            total_steps=self.total_steps,
            device_batch=self.world.share(self.batch_size),
            micro_batch=micro_batch,
        )
        return dataclasses.replace(self, stages=stages)

    def describe(self) -> list[str]:
        """The lines of the console output that all runs share."""
        stages = ", ".join(f"{s.size} px for {s.stop - s.start} steps" for s in self.stages)
        share, size = self.world.share(self.batch_size), self.world.size
        micro = ", ".join(str(share // s.accumulation) for s in self.stages)
        several = f" on each of {size} processes" if size > 1 else ""
        return [
            f"length    {self.total_steps} steps ({self.total_steps / self.steps_per_epoch:.1f} epochs): {stages}",
            f"batch     {self.batch_size} images, {micro} at once{several}; peak learning rate {self.peak_lr:.2e}",
            f"device    {self.device}, {'bf16' if self.bf16 else 'float32'}, "
            f"{'compiled' if self.compile else 'eager'}, {self.num_workers} data workers"
            + (f"; weights divided among {size} processes" if self.shard else ""),
            *self.notes,
        ]


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
    per_epoch = steps_per_epoch(source, config.batch_size)
    epochs = config.epochs or config.DEFAULT_EPOCHS
    total = config.steps or max(1, round(min(epochs * per_epoch, sys.maxsize)))
    warmup, drop = (
        schedule.to_steps(duration, total_steps=total, steps_per_epoch=per_epoch, batch_size=config.batch_size)
        for duration in (config.warmup, config.lr_drop or "100%")
    )
    device = devices.resolve_device(config.device, local_rank=world.local_rank if world.size > 1 else None)
    plan = Plan(
        num_images=len(source),
        batch_size=config.batch_size,
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
        compile=device.type == "cuda" if config.compile is None else config.compile,
        shard=config.shard and world.size > 1,
        num_workers=devices.resolve_workers(config.num_workers, sharing=world.local_size),
        world=world,
    )
    return plan.with_stages(sizes, micro_batch=None if config.micro_batch == "auto" else config.micro_batch)
