"""The one training loop. It knows no model and no dataset: batches go in, a dict with "loss" comes out.

Every step is a function of (weights, optimiser, seed, step). So a checkpoint holds model, optimiser and step (and the
sums of the next log line), and a run that was killed and resumed ends with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from fastmim.config import to_mapping
from fastmim.errors import RunError
from fastmim.randomness import step_seed
from fastmim.system.files import replacing
from fastmim.system.run_directory import RunDirectory
from fastmim.system.signals import Stopped, StopSignals
from fastmim.system.tensor_files import save_tensors
from fastmim.training import checkpoint, optim, sharding
from fastmim.training.logs import Logs
from fastmim.training.meter import PATIENCE, Meter
from fastmim.training.plan import Plan
from fastmim.training.saving import Saver
from fastmim.training.schedule import Stage, stage_at
from fastmim.training.settings import TrainConfig
from fastmim.training.world import ALONE, World

_STOPPING = "stopping after this step; again to leave without saving"

Batch = dict[str, Any]
Periodic = tuple[int, Callable[[int], dict[str, float]]]
"""(every, function): function(step) runs every `every` steps and after the last; its metrics are logged."""


class Trainable(Protocol):
    """What `fit` trains; `training.run.Task` has the details."""

    model: nn.Module
    """If it has a method `after_step`, that is called with the number of steps made."""

    def batches(self, stage: Stage, first_step: int) -> Generator[Batch]:
        """Yield the micro-batches of a stage from a step on, `stage.accumulation` for each step."""

    def prepare(self, batch: Batch) -> Mapping[str, Any]:
        """Do the device's half of the augmentation; compiled together with the model."""

    def build_optimizer(self, model: nn.Module) -> AdamW:
        """Make an optimiser for a model's parameters."""

    def facts(self) -> dict[str, Any]:
        """Facts for the manifests of checkpoints."""

    def periodic(self, logs: Logs) -> Sequence[Periodic]:
        """Return what happens at intervals during training."""


def fit(
    task: Trainable,
    config: TrainConfig,
    plan: Plan,
    *,
    logs: Logs,
    resume_from: checkpoint.Checkpoint | None = None,
    faster_data: str = "",
) -> int:
    """Train until the last stage ends or a signal (`system.signals`) asks to stop.

    Args:
        task: Its model is on `plan.device` at the first stage's size and returns {"loss": ...}; for more than one
            stage it needs `set_input_size`.
        config: The settings of the run.
        plan: The same, resolved to steps.
        logs: Where metrics go.
        resume_from: The checkpoint to resume.
        faster_data: Advice to print once if the device waits for data.

    Returns:
        The number of steps made, earlier starts included; less than the plan's if a signal came.

    Raises:
        RunError: the loss was not finite in ten steps in a row, or a checkpoint could not be written.
        Stopped: a signal came while the last evaluation was waiting for data.
    """
    model, directory = task.model.cpu() if plan.shard else task.model, RunDirectory(config.out)
    step, total = resume_from.step if resume_from else 0, plan.total_steps
    stage = stage_at(plan.stages, max(step - 1, 0))  # a checkpoint at a boundary has the shapes before it
    if stage.size != plan.stages[0].size:
        model.set_input_size(stage.size)  # type: ignore[operator]
    optimizer = task.build_optimizer(model)
    if resume_from:
        checkpoint.load(resume_from, model, optimizer)
    model.train()
    world = plan.world
    about = {"seed": config.seed, "global_batch": config.batch_size, "world_size": world.size}
    about |= task.facts() | {"config": to_mapping(config)}
    trained, wrapped, optimizer, forward = distribute(task, optimizer, plan, stage)
    meter = Meter(
        step,
        device=plan.device,
        batch_size=plan.images_per_step,
        steps_per_epoch=plan.steps_per_epoch,
        faster_data=faster_data,
        **({"state": resume_from.manifest["meter"]} if resume_from and "meter" in resume_from.manifest else {}),
    )
    periodic = task.periodic(logs)
    compiles = plan.compile  # the next step does

    def save() -> None:
        now = about | {"meter": meter.state()}
        saver.save(step, trained, optimizer, about=now)

    saver = Saver(directory.checkpoints, keep_every=config.keep_every, world=world, say=logs.say)
    with StopSignals(elsewhere=world.asked_to_stop, answer=_STOPPING) as stop, saver:
        try:
            while step < total:
                if (new := stage_at(plan.stages, step)).size != stage.size:
                    compiles = plan.compile
                    anew = "; compiling anew" if compiles else ""
                    logs.say(f"stage: {stage.size} -> {new.size} pixels at step {step}{anew}")
                    if plan.shard:
                        optimizer = sharding.unite(trained, optimizer, model, rebuild=task.build_optimizer)
                    optimizer = optim.resize(model, optimizer, new.size, rebuild=task.build_optimizer)
                    if compiles:
                        torch.compiler.reset()  # the recordings of the size before hold memory
                    trained, wrapped, optimizer, forward = distribute(task, optimizer, plan, new)
                stage = new
                stream = until_stopped(on_device(task.batches(stage, step), plan.device), stop, world, meter)
                while step < stage.stop:
                    rate = plan.learning_rate(step)
                    batch = train_step(
                        wrapped,
                        forward,
                        stream,
                        optimizer,
                        meter,
                        learning_rate=rate,
                        accumulation=stage.accumulation,
                        clip=config.clip,
                        seeds=(config.seed, step),
                        world=world,
                    )
                    step += 1
                    if compiles and step % config.log_every and step < total:  # or the line would have no step
                        meter.restart(step)
                    compiles = False
                    if hasattr(trained, "after_step"):
                        trained.after_step(step)  # type: ignore[operator]
                    logs.advance(step)
                    if step % config.log_every == 0 or step == total:
                        metrics = meter.read(step, rate)
                        metrics, straggler = world.compare(metrics, *meter.own)
                        logs.log(step, metrics)
                        for hint in (meter.hint(), straggler):
                            if hint:
                                logs.say(hint)
                    if world.size == 1 or step % config.log_every == 0:  # processes must look at the same step
                        with world.together():
                            saver.check()
                            in_a_row = meter.in_a_row(wait=world.size > 1)
                            if in_a_row >= PATIENCE and world.main:
                                raise RunError(_not_finite(in_a_row, step, batch, directory))
                    with meter.timing("paused"):
                        for every, function in periodic:
                            if step % every == 0 or step == total:
                                if numbers := function(step):
                                    logs.log(step, numbers)
                                model.train()
                                if plan.shard:
                                    model.cpu()
                        # A stage's end is saved before the next one changes the shapes.
                        if step % config.save_every == 0 or step == stage.stop:
                            save()
                stream.close()  # ends its data workers now, not when the garbage collector runs
        except Stopped:  # what waits for data, a step or an evaluation, is left out
            if step == total:  # not finished without its last evaluation
                raise
            if step:
                save()
        with world.together():
            saver.wait()
    world.gather()
    if skipped := meter.skipped():
        logs.say(f"skipped {skipped:,} of {step:,} steps: their loss or gradient was not finite")
    return step


def distribute(
    task: Trainable, optimizer: AdamW, plan: Plan, stage: Stage
) -> tuple[nn.Module, nn.Module, AdamW, Callable[[Batch], Tensor]]:
    """The module whose weights are trained, the same from `World.wrap`, its optimiser, and its `make_forward`."""
    world, trained = plan.world, task.model
    if plan.shard:
        trained, optimizer = sharding.divide(task.model, optimizer, plan, rebuild=task.build_optimizer)

        def gather() -> None:
            sharding.gather(trained, task.model.to(plan.device) if world.main else None)

        world.gather = gather
    wrapped = world.wrap(trained)
    compile = plan.compile and not plan.shard  # its blocks are compiled
    return (
        trained,
        wrapped,
        optimizer,
        make_forward(
            wrapped,
            task.prepare,
            plan.device,
            bf16=plan.bf16,
            compile=compile,
            cuda_graphs=plan.cuda_graphs and stage.accumulation == 1,  # see pytorch/pytorch#169545
        ),
    )


def make_forward(
    model: nn.Module,
    prepare: Callable[[Batch], Mapping[str, Any]],
    device: torch.device,
    *,
    bf16: bool,
    compile: bool,
    cuda_graphs: bool = False,
) -> Callable[[Batch], Tensor]:
    """Make the function that turns a batch on the device into its loss.

    Args:
        model: Returns {"loss": ...}.
        prepare: Makes its arguments of a batch.
        device: Where both are.
        bf16: Autocast to bfloat16.
        compile: Compile both together.
        cuda_graphs: Record the kernels of the compiled function and of its backward pass, and replay them. Gradients
            lie in the recording's memory: they must be gone (None) before the next call.
    """

    def forward(batch: Batch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return model(**prepare(batch))["loss"]

    # dynamic=False: sizes change only at a stage's start, and each size deserves its own kernels.
    if not cuda_graphs:
        return torch.compile(forward, dynamic=False) if compile else forward
    recorded = torch.compile(forward, dynamic=False, options={"triton.cudagraphs": True})

    def replay(batch: Batch) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return recorded(batch)

    return replay


def train_step(
    model: nn.Module,
    forward: Callable[[Batch], Tensor],
    batches: Iterator[Batch],
    optimizer: AdamW,
    meter: Meter,
    *,
    learning_rate: float,
    accumulation: int = 1,
    clip: float | None = None,
    seeds: tuple[int, int] = (0, 0),
    world: World = ALONE,
) -> Batch:
    """Make one optimiser step, which changes nothing if its loss or gradient is not finite.

    Args:
        model: On the device, from `World.wrap`; its weights change.
        forward: From `make_forward`.
        batches: Micro-batches on the device; `accumulation` of them are taken.
        optimizer: A group's "lr_scale" multiplies the learning rate.
        meter: Counts the step.
        clip: Largest gradient norm.
        seeds: (run's seed, step), which decide dropout and drop path.
        world: The processes that share the step.

    Returns:
        The last micro-batch.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
    loss = torch.zeros((), device=meter.device)
    # Disabled, this autocast casts nothing; around the micro-batches, it keeps the weights that `forward` casts.
    with torch.autocast(meter.device.type, enabled=False):
        for part in range(accumulation):
            with meter.timing("waiting"):
                batch = next(batches)
            seed_generators(step_seed(*seeds, part, *([world.rank] if world.rank else [])), meter.device)
            with nullcontext() if part == accumulation - 1 else world.accumulating(model):
                with meter.forward():
                    part_loss = forward(batch) / accumulation
                part_loss.backward()
            loss += part_loss.detach()
    loss = world.mean(loss)
    norm = sharding.whole(get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    if clip is not None:
        clip_grads_with_norm_(model.parameters(), clip, norm)
    # A non-finite step must not touch the weights, and finding out must not stall the device:
    # fused AdamW reads this flag on the device and leaves weights and moments alone.
    optimizer.found_inf = meter.add(loss, norm)  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return batch


def until_stopped(batches: Generator[Batch], stop: StopSignals, world: World, meter: Meter) -> Generator[Batch]:
    """Yield the batches while no process of the run is asked to stop; all of them then stop before the same batch.

    Raises:
        Stopped: a process was asked to stop.
    """
    with closing(batches):
        while True:
            ended: Stopped | None = None
            try:
                with meter.timing("loading"):
                    batch = next(batches)
            except Stopped as error:  # no data comes here
                ended = error
            if world.agree(stop.requested or ended is not None):
                raise ended or Stopped("stopped: run the same command to resume")
            yield batch


def on_device(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """Yield the batches on the device; on CUDA a separate stream copies them while the previous step is computed."""
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
    """Move the batch's tensors to the device and leave the rest as it is."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators of dropout and drop path (`torch.manual_seed` would take 70 times longer)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _not_finite(in_a_row: int, step: int, batch: Batch, directory: RunDirectory) -> str:
    """Save the batch and return the message of a run that stops because its loss is not finite."""
    path = directory.nonfinite_batch
    try:
        with replacing(path) as partial:
            save_tensors(partial, {name: value for name, value in batch.items() if isinstance(value, Tensor)})
        saved = f"is in {path}"
    except OSError as error:
        saved = f"could not be saved ({error})"
    return (
        f"the loss was not finite in {in_a_row} steps in a row, up to step {step}; expected a finite loss: the last "
        f"batch {saved}; lower the learning rate (--lr) or clip gradients (--clip 1) and start with --overwrite"
    )
