"""A training run of any kind, from request to result: opened, planned, resumed, trained, finished."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, ClassVar, Generic, TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import AdamW

from fastmim import config as configs
from fastmim.data import loader, sources
from fastmim.data.bad_images import BadImages
from fastmim.data.sources import Source, objects
from fastmim.errors import RunError
from fastmim.reporting import writing
from fastmim.system.display import say
from fastmim.system.run_directory import RunDirectory, versions
from fastmim.training import checkpoint, duration, opening, resuming
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.logs import Logs
from fastmim.training.loop import Batch, Periodic, fit, make_forward
from fastmim.training.micro_batch import largest_micro_batch, out_of_memory
from fastmim.training.opening import Recipes
from fastmim.training.plan import fitting, make_plan
from fastmim.training.result import Result
from fastmim.training.schedule import Stage
from fastmim.training.settings import CropConfig, TrainConfig
from fastmim.training.starts import describe_start
from fastmim.training.trackers import Tracker, check_installed, open_trackers
from fastmim.training.world import World, joined

Config = TypeVar("Config", bound=TrainConfig)


class Task(ABC, Generic[Config]):
    """What one kind of run trains, and on what; `launch` does the rest.

    The order of calls: the constructor opens the data and makes the plan, `build` makes the model, `describe` says
    what will happen, then `loop.fit` trains, and `finish` writes the result.
    """

    config_class: ClassVar[type[Any]]
    recipes: ClassVar[Recipes]

    model: nn.Module
    """On the plan's device, once built; forward(**prepare(batch)) returns {"loss": ...}."""

    def __init__(self, config: Config, console: Console, world: World) -> None:
        """Open the data and make the plan.

        Raises:
            RequestError: the data or the device cannot be had, or there are fewer images than one batch.
        """
        self.config, self.console = config, console
        self.directory = RunDirectory(config.out)
        self.source = self.open_data()
        config = fitting(config, len(self.source), world)
        if config.range == "auto":  # resuming does not measure it again
            config = dataclasses.replace(config, range=self.source.decoding.range)
        self.config = config
        self.world = world
        self._unreadable: list[tuple[list[tuple[str, str]], int]] = []  # not yet told to the main process
        self.plan = make_plan(config, self.source, sizes=self.sizes(), world=world)
        self.bad_images = BadImages(
            config.out,
            num_images=self.num_images,
            max_share=config.max_bad_share,
            say=functools.partial(say, console),
        )

    @abstractmethod
    def open_data(self) -> Source:
        """Open the data and return the training images."""

    @abstractmethod
    def sizes(self) -> Sequence[tuple[int, float]]:
        """(image size, share of the run) of each stage, in order."""

    @abstractmethod
    def build(self, found: Checkpoint | None) -> None:
        """Make `model` on the plan's device at the first stage's size; its weights follow if there is a checkpoint.

        Raises:
            RequestError: the model or its weights cannot be had.
        """

    @abstractmethod
    def describe(self) -> list[str]:
        """Describe the run, as lines for the console."""

    @abstractmethod
    def prepare(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Do the device's half of the augmentation: a batch of the loader -> the arguments of the model."""

    @abstractmethod
    def build_optimizer(self, model: nn.Module) -> AdamW:
        """Make the optimiser of a model like `model`."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Facts for the manifests of checkpoints, as JSON types; config.yaml tells those in `config.ABOUT` too."""

    def periodic(self, logs: Logs) -> list[Periodic]:
        """Return what happens at intervals during training: pictures and evaluations by `World.on_main`."""
        return [] if self.world.size == 1 else [(self.config.log_every, self._share_unreadable)]

    def reporting(self, every: str, logs: Logs) -> list[Periodic]:
        """The last of what `periodic` returns: the run's report, which shows what the others have written."""
        if self.config.report == "never":
            return []

        def write_report(step: int) -> dict[str, float]:
            if step < self.plan.total_steps:  # otherwise `launch` does, when all is written
                writing.keep_current(self.config.out, logs.say, ended=False)
            return {}

        return [(self.plan.steps(every), self.world.on_main(write_report))]

    @abstractmethod
    def finish(self, step: int) -> Result:
        """Write the trained network if the run has finished, and return its result; a signal may have stopped it."""

    def result(self, step: int) -> Result:
        """The result of a run that has come to this step."""
        return Result(self.config.out, step, self.plan.total_steps)

    @property
    def num_images(self) -> int:
        """Images that the run reads, for the share of unreadable ones."""
        return len(self.source)

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the images of each setting that names some, for manifests."""
        return {"data": sources.fingerprint(self.source)}

    @property
    def faster_data(self) -> str:
        """Advice for a run whose device waits for images."""
        return sources.faster(self.source)

    def transform(self) -> Callable[[Tensor, int], Tensor] | None:
        """More augmentation in the data workers; see `loader.load`."""
        return None

    def blank_batch(self, num_images: int) -> Batch:
        """Make a batch of black images of the first stage's size on the device, to see what fits in its memory."""
        size, device = self.plan.stages[0].size, self.plan.device
        keys = torch.zeros(num_images, dtype=torch.int64, device=device)
        images = torch.zeros(num_images, 3, size, size, dtype=torch.uint8, device=device)
        return {"images": images, "keys": keys, "labels": keys}

    def check_resumable(self, found: Checkpoint) -> None:
        """Refuse a checkpoint of other settings or other data.

        Raises:
            RequestError: the steps left would not be the run's.
        """
        opening.check_config(self.config, found)
        resuming.check_images(self.config, found, num_images=len(self.source), fingerprints=self.fingerprints)
        resuming.check_length(self.config, found, total_steps=self.plan.total_steps)

    def read(self, stage: Stage, first_step: int) -> Generator[Batch]:
        """Yield the micro-batches of a stage from a step on, with "keys" and "bad" as from `loader.load`."""
        assert isinstance(self.config, CropConfig)
        return loader.load(
            self.source,
            size=stage.size,
            crop_scale=self.config.crop_scale,
            transform=self.transform(),
            **self.loading(stage, first_step),
        )

    def loading(self, stage: Stage, first_step: int) -> dict[str, Any]:
        """The arguments of `loader.load` that do not depend on what is done with an image."""
        return {
            "seed": self.config.seed,
            "global_batch": self.config.images_per_step,
            "first_step": first_step,
            "last_step": stage.stop,
            "accumulation": stage.accumulation,
            "rank": self.world.rank,
            "world_size": self.world.size,
            "num_workers": self.plan.num_workers,
            "pin_memory": self.plan.device.type == "cuda",
            "shuffle": self.config.shuffle,
        }

    def batches(self, stage: Stage, first_step: int) -> Generator[Batch]:
        """Yield the micro-batches of a stage from a step on, and report unreadable images."""
        with closing(self.read(stage, first_step)) as stream:
            for batch in stream:
                bad, num_seen = batch.pop("bad"), len(batch["keys"])
                if self.world.size == 1:
                    self.bad_images.update(bad, num_seen=num_seen)
                else:
                    self._unreadable.append((bad, num_seen))
                yield batch

    def _share_unreadable(self, step: int) -> dict[str, float]:
        """Tell the main process of the images that the others could not read."""
        told, self._unreadable = self.world.exchange(self._unreadable), []
        with self.world.together():
            for bad, num_seen in (pair for found in told for pair in found) if self.world.main else ():
                self.bad_images.update(bad, num_seen=num_seen)
        return {}


def launch(
    kind: type[Task[Config]],
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    **more: Any,
) -> Any:
    """Run a task from its settings, as `pretrain` does.

    Args:
        kind: What to train.
        settings: Fields of the task's config.
        overwrite: Delete the run that `out` holds and start from scratch.
        dry_run: Print the resolved config and the plan, and stop.
        more: Further arguments of the task.

    Returns:
        The task's `Result`.
    """
    settings = objects.named(settings, kind.config_class)
    with joined() as world, ExitStack() as stack:
        console = Console(highlight=False, quiet=not world.main)
        config = _opened(kind, settings, overwrite, dry_run, console=console, world=world, stack=stack)
        task, found = _prepared(functools.partial(kind, config, console, world, **more), world, overwrite=overwrite)
        default, config = config.batch_size, task.config
        if dry_run:
            say(console, configs.to_yaml(config))
        say(console, "\n".join(task.describe()))
        if config.batch_size != default:
            say(console, f"note      a batch of {config.batch_size} instead of {default}: there are no more images")
        if found and (changes := resuming.describe_changes(config, task.plan, found)):
            say(console, "\n".join(changes))
        if dry_run:
            say(console, duration.describe(task, found.step if found else 0))
            return task.result(0)
        with world.together():
            if world.main:
                about = {key: value for key, value in task.facts().items() if key in configs.ABOUT and value}
                task.directory.prepare(config, overwrite=overwrite, about=about)
                if found:  # a kill may have come before the last save did
                    checkpoint.clean(found.path, keep_every=config.keep_every)
                start = describe_start(config, task.plan, step=found.step if found else 0)
                task.directory.add_start(start)
        if found:
            say(console, f"resuming at step {found.step} of {task.plan.total_steps}")
        try:
            step = _train(task, found)
            with world.together():
                if not world.main:
                    return task.result(step)
                result = task.finish(step)
                if config.report != "never":
                    writing.keep_current(config.out, functools.partial(say, console), ended=True)
                return result
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise RunError(out_of_memory(error, rank=world.rank)) from error
        except OSError as error:
            kept = checkpoint.remedy(task.directory.checkpoints)
            raise RunError(f"the run in {config.out} failed: {error}; {kept}") from error


def _opened(
    kind: type[Task[Config]],
    settings: Mapping[str, Any],
    overwrite: bool,
    dry_run: bool,
    *,
    console: Console,
    world: World,
    stack: ExitStack,
) -> Config:
    """The config, resolved in every process once the main one holds the run directory's lock, until the stack ends."""
    with world.together():
        world.check_devices(configs.build(kind.config_class, settings).devices)
        if world.main:
            request = opening.opened(
                kind.config_class,
                settings,
                recipes=kind.recipes,
                overwrite=overwrite,
                dry_run=dry_run,
                console=console,
            )
            config: Config = stack.enter_context(request)
            check_installed(config.tracker_names())  # before anything is written
    with world.together():
        if not world.main:
            config = opening.resolve(kind.config_class, settings, recipes=kind.recipes, overwrite=overwrite)
    if not dry_run:
        world.check_sees(config.out)
    return config


def _prepared(
    make: Callable[[], Task[Config]], world: World, *, overwrite: bool
) -> tuple[Task[Config], Checkpoint | None]:
    """A task with its model built, and the checkpoint to resume; the same in every process."""
    with world.together():
        task = make()
        found = None if overwrite else checkpoint.newest(task.directory.checkpoints)
    for what, value in (
        *configs.to_mapping(task.config).items(),
        ("the number of images", len(task.source)),
        ("the checkpoint to resume", found.step if found else None),
        ("the versions", versions()),
    ):
        world.check_same(what, value)
    with world.together():
        if found:
            task.check_resumable(found)
        torch.manual_seed(task.config.seed)
        task.build(found)
    if task.config.micro_batch == "auto":
        with world.together():
            largest = _largest_micro_batch(task)
        largest = min(world.exchange(largest)) * task.plan.copies
        task.plan = task.plan.with_stages(task.sizes(), micro_batch=largest)
    for what, value in task.facts().items():
        world.check_same(what, value)
    return task, found


def _largest_micro_batch(task: Task[Any]) -> int:
    plan, size = task.plan, task.plan.stages[0].size
    return largest_micro_batch(
        task.model,
        make_forward(task.model, task.prepare, plan.device, bf16=plan.bf16, compile=False),
        task.blank_batch,
        batch_size=plan.share,
        img_size=size,
        device=plan.device,
    )


def _train(task: Task[Any], found: Checkpoint | None) -> int:
    """Train from a checkpoint or the start; the steps made, all starts together."""
    config, step = task.config, found.step if found else 0
    logs = Logs(
        task.directory,
        total_steps=task.plan.total_steps,
        step=step,
        trackers=_trackers(task, step) if task.world.main else [],
        console=task.console,
        writes=task.world.main,
        compiled=task.plan.compile,
    )
    with logs:
        if task.plan.compile:
            logs.say("compiling: the first step can take minutes")
        step = fit(task, config, task.plan, logs=logs, resume_from=found, faster_data=task.faster_data)
        if task.bad_images:
            logs.say(task.bad_images.describe())
    return step


def _trackers(task: Task[Any], step: int) -> list[Tracker]:
    config = task.config
    return open_trackers(
        config.tracker_names(),
        auto=config.trackers == "auto",
        out=config.out,
        settings=configs.to_mapping(config),
        step=step,
    )
