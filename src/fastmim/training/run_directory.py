"""A run directory: the config that it holds, whether a request resumes it or is refused, and what it may delete."""

from __future__ import annotations

import functools
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import yaml
from rich.console import Console

from fastmim import config as configs
from fastmim.errors import RequestError
from fastmim.system import locking
from fastmim.training import checkpoint
from fastmim.training.logs import Logs
from fastmim.training.settings import TrainConfig
from fastmim.training.trackers import open_trackers

Config = TypeVar("Config", bound=TrainConfig)

# What runs write; `--overwrite` removes these and nothing else.
FILES = (
    "config.yaml",
    "metrics.jsonl",
    "weights.safetensors",
    "weights_best.safetensors",
    "evaluation.json",
    "bad_images.txt",
    "nonfinite_batch.safetensors",
    "wandb_id.txt",
    "mlflow_id.txt",
    "checkpoints",
    "samples",
    "tensorboard",
    "wandb",
    "mlflow.db",
)


@contextmanager
def opened(
    cls: type[Config],
    settings: Mapping[str, Any],
    *,
    recipes: Mapping[str, Callable[[], dict[str, Any]]],
    overwrite: bool,
    dry_run: bool,
    console: Console,
) -> Iterator[Config]:
    """A run's config, from `resolve`, and its directory kept to this process (but for a dry run).

    Raises:
        RequestError: as `resolve`; another process is at work in the directory, or it cannot be written.
    """
    out = configs.build(cls, settings).out
    say = functools.partial(console.print, soft_wrap=True, markup=False)
    with nullcontext() if dry_run else locking.hold(out, say):
        yield resolve(cls, settings, recipes=recipes, overwrite=overwrite)


def resolve(
    cls: type[Config],
    settings: Mapping[str, Any],
    *,
    recipes: Mapping[str, Callable[[], dict[str, Any]]],
    overwrite: bool = False,
) -> Config:
    """The run's config: a stored run's settings, else a recipe's, and over them those given.

    Raises:
        RequestError: unknown or wrong settings, or settings that differ from the run that `out` holds.
    """
    given = configs.build(cls, settings)
    path = given.out / "config.yaml"
    if path.exists() and not overwrite:
        stored = configs.read(path)
        config = configs.build(cls, stored, settings)
        if differing := configs.differences(stored, config):
            raise RequestError(
                f"out is {given.out}, which holds another run ({'; '.join(differing)}): take another --out, "
                f"drop these settings to resume it, or delete it with --overwrite"
            )
        return config
    recipe = settings.get("recipe")
    if recipe is None:
        return given
    if recipe not in recipes:
        raise RequestError(
            f"recipe is {recipe!r}; expected one of {', '.join(recipes)}{configs.nearest(recipe, recipes)}"
        )
    return configs.build(cls, recipes[recipe](), settings)


def prepare(config: TrainConfig, *, overwrite: bool) -> None:
    """Make the run directory and write its config.yaml.

    Raises:
        RequestError: it cannot be written.
    """
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for name in FILES:
                path = config.out / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        versions = {p: version(p) for p in ("fastmim", "torch", "timm")} | {"python": platform.python_version()}
        partial = config.out / ".config.tmp"
        partial.write_text(configs.to_yaml(config) + yaml.safe_dump({"versions": versions}))
        partial.replace(config.out / "config.yaml")
    except OSError as error:
        raise RequestError(f"out is {config.out}: {error.strerror}; expected a directory that can be written") from None


def resume_point(config: TrainConfig, *, num_images: int) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from, if the run has one.

    Raises:
        RequestError: the data has changed since, so the steps left would not be the run's.
    """
    found = checkpoint.newest(config.out / "checkpoints")
    if found and found.manifest["num_images"] != num_images:
        raise RequestError(
            f"data is {config.data} with {num_images} images; expected the {found.manifest['num_images']} that "
            f"the run in {config.out} began with: give it the same images, another --out, or --overwrite"
        )
    return found


def open_logs(
    config: TrainConfig, *, total_steps: int, resume_from: checkpoint.Checkpoint | None, console: Console
) -> Logs:
    """A run's metrics.jsonl, progress and trackers, from where it goes on.

    Raises:
        RequestError: a tracker that was asked for by name is not installed.
    """
    step = resume_from.step if resume_from else 0
    trackers = open_trackers(
        config.tracker_names(),
        auto=config.trackers == "auto",
        out=config.out,
        settings=configs.to_mapping(config),
        step=step,
    )
    return Logs(config.out, total_steps=total_steps, step=step, trackers=trackers, console=console)


def read_config(cls: type[Config], out: Path) -> Config:
    """The config of the run in a directory.

    Raises:
        RequestError: the directory holds no run.
    """
    path = out / "config.yaml"
    if not path.exists():
        raise RequestError(f"run is {out}; expected a run directory with a config.yaml, as `fastmim pretrain` makes")
    return configs.build(cls, configs.read(path))


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
