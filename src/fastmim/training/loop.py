"""The one training loop. It knows no model and no dataset: batches go in, a dict with "loss" comes out.

Every step is a function of (weights, optimiser, seed, step), so that model, optimiser and step are all that
a checkpoint holds, and a run that was killed and started again ends with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from fastmim.config import to_mapping
from fastmim.errors import RunError
from fastmim.randomness import step_seed
from fastmim.system.signals import StopSignals
from fastmim.training import checkpoint, optim
from fastmim.training.logs import Logs
from fastmim.training.meter import Meter
from fastmim.training.schedule import Stage, stage_at
from fastmim.training.settings import TrainConfig

Batch = dict[str, Any]

# Non-finite steps in a row after which a run stops.
PATIENCE = 10


class Plan(Protocol):
    """What the loop takes from a plan, of pre-training or of fine-tuning."""

    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def bf16(self) -> bool: ...
    @property
    def compile(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the loop needs to know of a run besides the model and its data."""

    out: Path
    """Run directory."""
    seed: int
    batch_size: int
    """Images per optimiser step, over all devices."""
    steps_per_epoch: int
    device: torch.device
    bf16: bool = False
    """Autocast the forward pass to bfloat16."""
    compile: bool = False
    clip: float | None = None
    save_every: int = 500
    keep_every: int | None = None
    log_every: int = 10
    about: dict[str, Any]
    """Facts for the checkpoints' manifests."""
    faster_data: str = ""
    """What the user can do where the device waits for data; said once if it does."""

    @classmethod
    def of(cls, config: TrainConfig, plan: Plan, *, about: dict[str, Any], faster_data: str) -> Run:
        """The run that a config and its plan describe; config and seed are added to `about`."""
        shared = {"seed": config.seed, "global_batch": config.batch_size, "world_size": 1}
        return cls(
            out=config.out,
            seed=config.seed,
            batch_size=config.batch_size,
            steps_per_epoch=plan.steps_per_epoch,
            device=plan.device,
            bf16=plan.bf16,
            compile=plan.compile,
            clip=config.clip,
            save_every=config.save_every,
            keep_every=config.keep_every,
            log_every=config.log_every,
            about=shared | about | {"config": to_mapping(config)},
            faster_data=faster_data,
        )


def fit(
    model: nn.Module,
    *,
    stages: Sequence[Stage],
    batches: Callable[[Stage, int], Generator[Batch]],
    prepare: Callable[[Batch], Batch],
    build_optimizer: Callable[[nn.Module], AdamW],
    learning_rate: Callable[[int], float],
    logs: Logs,
    run: Run,
    resume_from: checkpoint.Checkpoint | None = None,
    periodic: Sequence[tuple[int, Callable[[int], dict[str, float]]]] = (),
) -> int:
    """Train until the last stage ends or a signal (SIGTERM, SIGUSR1, SIGINT) asks to stop.

    Args:
        model: On `run.device` at the first stage's size; forward(**prepare(batch)) returns {"loss": ...}.
        stages: Image sizes over the run; more than one needs `model.set_input_size`.
        batches: (stage, first step) -> micro-batches from that step on, `stage.accumulation` for each step.
        prepare: The device's part of augmentation, compiled together with the model.
        build_optimizer: An optimiser over a model's parameters.
        learning_rate: Step -> learning rate; a group's "lr_scale" multiplies it.
        resume_from: The checkpoint to go on from.
        periodic: (every, function) pairs: function(step) is called after each `every` steps and after the
            last one; what it returns is logged.

    Returns:
        The number of steps made, all runs together; less than the last stage's stop if a signal came.

    Raises:
        RunError: the loss was not finite in ten steps in a row, or a checkpoint could not be written.
    """
    step = resume_from.step if resume_from else 0
    stage = stage_at(stages, max(step - 1, 0))  # a checkpoint at a boundary has the shapes before it
    if stage.size != stages[0].size:
        model.set_input_size(stage.size)  # type: ignore[operator]
    optimizer = build_optimizer(model)
    if resume_from:
        checkpoint.load(resume_from, model, optimizer)

    def compute(batch: Batch) -> Tensor:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.bf16):
            return model(**prepare(batch))["loss"]

    # dynamic=False: sizes change only at a stage's start, and each size deserves its own kernels.
    compiled = torch.compile(compute, dynamic=False) if run.compile else compute
    total = stages[-1].stop
    meter = Meter(
        step,
        device=run.device,
        batch_size=run.batch_size,
        steps_per_epoch=run.steps_per_epoch,
        faster_data=run.faster_data,
    )
    model.train()
    with StopSignals() as stop:
        while step < total and not stop.requested:
            if (new := stage_at(stages, step)).size != stage.size:
                logs.say(f"stage: {stage.size} -> {new.size} pixels at step {step}")
                optimizer = optim.resize(model, optimizer, new.size, rebuild=build_optimizer)
            stage = new
            stream = on_device(batches(stage, step), run.device)
            while step < stage.stop and not stop.requested:
                rate = learning_rate(step)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_scale", 1.0)
                loss = torch.zeros((), device=run.device)
                for part in range(stage.accumulation):
                    with meter.timing("waiting"):
                        batch = next(stream)
                    seed_generators(step_seed(run.seed, step, part), run.device)
                    part_loss = compiled(batch) / stage.accumulation
                    part_loss.backward()
                    loss += part_loss.detach()
                gradients = [p.grad for p in model.parameters() if p.grad is not None]
                norm = get_total_norm(gradients)
                if run.clip is not None:
                    clip_grads_with_norm_(model.parameters(), run.clip, norm)
                # A non-finite step must not touch the weights, and finding out must not stall the device:
                # fused AdamW reads this flag on the device and leaves weights and moments alone.
                optimizer.found_inf = meter.add(loss, norm)  # type: ignore[attr-defined]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                logs.advance(step)

                if step % run.log_every == 0 or step == total:
                    logs.log(step, meter.read(step, rate))
                    if hint := meter.hint():
                        logs.say(hint)
                    if meter.in_a_row >= PATIENCE:
                        raise RunError(_not_finite(meter.in_a_row, step, batch, run.out))
                with meter.timing("paused"):
                    for every, function in periodic:
                        if step % every == 0 or step == total:
                            if numbers := function(step):
                                logs.log(step, numbers)
                            model.train()
                    if step % run.save_every == 0 or step == total or stop.requested:
                        checkpoint.save(
                            run.out / "checkpoints",
                            step,
                            model,
                            optimizer,
                            about=run.about,
                            keep_every=run.keep_every,
                        )
            stream.close()  # ends its data workers now, not when the garbage collector comes by
    return step


def on_device(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """The batches on the device; on CUDA copied by a stream of their own, while the step before is still computed."""
    with closing(batches):
        if device.type != "cuda":
            for batch in batches:
                yield to_device(batch, device)
            return
        copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        for batch in batches:
            with torch.cuda.stream(copying):
                copied = to_device(batch, device)
            computing.wait_stream(copying)
            for value in copied.values():
                if isinstance(value, Tensor):
                    value.record_stream(computing)  # its memory is free again after this stream's last use
            yield copied


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on the device; the rest as it is."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed what dropout and drop path draw from (`torch.manual_seed` would take 70 times longer)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _not_finite(in_a_row: int, step: int, batch: Batch, out: Path) -> str:
    """Save the batch; the message for a run that stops because its loss is not finite."""
    path = out / "nonfinite_batch.safetensors"
    save_file({k: v.cpu().contiguous() for k, v in batch.items() if isinstance(v, Tensor)}, path)
    return (
        f"the loss was not finite in {in_a_row} steps in a row, up to step {step}; expected a finite loss: the last "
        f"batch is in {path}; lower the learning rate (--lr) or clip gradients (--clip 1) and start with --overwrite"
    )
