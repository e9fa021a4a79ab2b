"""The one training loop. It knows no model and no dataset: batches go in, a dict with "loss" comes out.

Every step is a function of (weights, optimiser, seed, step), so that model, optimiser and step are all that
a checkpoint holds, and a run that was killed and started again ends with the same weights.
"""

from __future__ import annotations

import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from fastmim import checkpoint, optim
from fastmim.config import RunError, TrainConfig, to_mapping
from fastmim.logs import Logs
from fastmim.randomness import step_seed
from fastmim.schedule import Stage, stage_at

Batch = dict[str, Any]

# Non-finite steps in a row after which a run stops.
PATIENCE = 10
# The share of the time that a device may wait for data before the user is told, and after how many seconds.
_TOO_LONG, _SHOWN_AFTER = 0.2, 10.0


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
    meter = Meter(run, step)
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


class Meter:
    """Sums over the steps since the last log line, kept on the device and read once a line."""

    def __init__(self, run: Run, step: int) -> None:
        self._run = run
        self._sums = torch.zeros(4, device=run.device)  # loss, finite steps, non-finite in a row, skipped in all
        self._norm = torch.zeros((), device=run.device)
        self._from_step = step
        self._start = time.perf_counter()
        self._seconds = {"waiting": 0.0, "paused": 0.0}
        self._lines = 0
        self._waited, self._lasted = 0.0, 0.0  # seconds of all log lines but the first
        self._hinted = False
        self.in_a_row = 0
        """Non-finite steps in a row, as of the last `read`."""

    def add(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Count a step; returns float 1 where it is not finite and must be skipped, without leaving the device."""
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        total, count, in_a_row, skipped = self._sums.unbind()
        total = total + torch.where(finite, loss, 0.0)
        in_a_row = torch.where(finite, 0.0, in_a_row + 1)
        self._sums = torch.stack([total, count + finite, in_a_row, skipped + ~finite])
        self._norm = norm
        return (~finite).float()

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Count the time inside as "waiting" for data, or as "paused" (left out of the rates)."""
        start = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - start

    def read(self, step: int, rate: float) -> dict[str, float]:
        """The metrics of a log line; waits for the device."""
        loss, count, in_a_row, skipped, norm = [*self._sums.tolist(), self._norm.item()]
        now = time.perf_counter()
        steps, seconds = step - self._from_step, now - self._start - self._seconds["paused"]
        metrics = {
            "images": step * self._run.batch_size,
            "epoch": step / self._run.steps_per_epoch,
            "loss": loss / count if count else float("nan"),
            "lr": rate,
            "grad_norm": norm,
            "images_per_s": steps * self._run.batch_size / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_share": self._seconds["waiting"] / seconds,
            "memory_gb": memory_gb(self._run.device),
            "skipped_steps": skipped,
        }
        self.in_a_row = int(in_a_row)
        self._lines += 1
        if self._lines > 1:  # workers start and kernels compile before the first
            self._waited += self._seconds["waiting"]
            self._lasted += seconds
        self._sums[:2] = 0
        self._from_step, self._start, self._seconds = step, now, {"waiting": 0.0, "paused": 0.0}
        return metrics

    def hint(self) -> str | None:
        """Where the device waits for data, what to do about it; once, when it has shown."""
        share = self._waited / self._lasted if self._lasted else 0.0
        if self._hinted or not self._run.faster_data or self._lasted < _SHOWN_AFTER or share < _TOO_LONG:
            return None
        self._hinted = True
        return f"the device waited {share:.0%} of the time for data: {self._run.faster_data}"


def memory_gb(device: torch.device) -> float:
    """The most memory used so far, in GiB: the device's where it tells, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024) / 2**30


class StopSignals:
    """Turns the first SIGTERM, SIGUSR1 or SIGINT inside the block into `requested`; a second one kills."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignals:
        self._before = (
            {number: signal.signal(number, self._on_signal) for number in self.SIGNALS} if _in_main_thread() else {}
        )
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error: object) -> None:
        self._restore()


def _in_main_thread() -> bool:
    # Python takes signal handlers only there; in a notebook's thread or a server, signals do not stop a run.
    return threading.current_thread() is threading.main_thread()


def _not_finite(in_a_row: int, step: int, batch: Batch, out: Path) -> str:
    """Save the batch; the message for a run that stops because its loss is not finite."""
    path = out / "nonfinite_batch.safetensors"
    save_file({k: v.cpu().contiguous() for k, v in batch.items() if isinstance(v, Tensor)}, path)
    return (
        f"the loss was not finite in {in_a_row} steps in a row, up to step {step}; expected a finite loss: the last "
        f"batch is in {path}; lower the learning rate (--lr) or clip gradients (--clip 1) and start with --overwrite"
    )
