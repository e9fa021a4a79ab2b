"""The run directory: its files, the config that it holds, and whether a request resumes it or is refused."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from rich.console import Console

from fastmim import config as configs
from fastmim.errors import RequestError, shown
from fastmim.system import files, locking
from fastmim.system.display import say
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.settings import TrainConfig

Config = TypeVar("Config", bound=TrainConfig)
Recipes = Mapping[str, Callable[[], dict[str, Any]]]


class RunDirectory:
    """The files of a run, by what they hold."""

    FILES: ClassVar[tuple[str, ...]] = (
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
    """Everything that runs write. `--overwrite` removes these and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"  # a line for each log step
        self.checkpoints = path / "checkpoints"
        self.weights = path / "weights.safetensors"  # once the run has finished
        self.best_weights = path / "weights_best.safetensors"  # of the best validation so far
        self.evaluation = path / "evaluation.json"  # the scores of the last validation
        self.nonfinite_batch = path / "nonfinite_batch.safetensors"  # the last batch, if the loss was not finite

    def picture(self, name: str) -> Path:
        """The path of a picture in `samples/`, whose folder is created."""
        folder = self.path / "samples"
        folder.mkdir(exist_ok=True)
        return folder / name

    def read_config(self, cls: type[Config]) -> Config:
        """Read the run's config.

        Raises:
            RequestError: the directory holds no run.
        """
        if not files.exists(self.config):
            raise RequestError(
                f"run is {self.path}; expected a run directory with a config.yaml, as `fastmim pretrain` makes"
            )
        return configs.build(cls, self.read_settings())

    def read_settings(self) -> dict[str, Any]:
        """Read config.yaml.

        Raises:
            RequestError: as `config.read`, or it is not a file: a pipe would never end.
        """
        if not self.config.is_file():
            raise RequestError(f"config is {self.config}, which is not a file; expected the config of a run: remove it")
        return configs.read(self.config)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the lines of metrics.jsonl in order; no lines if there is no such file.

        A last line that a kill truncated is left out, as is any other that is not a step's.
        """
        lines = []
        for text in files.read_regular(self.metrics).splitlines() if self.metrics.exists() else ():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and type(line.get("step")) is int:
                lines.append(line)
        return lines

    def drop_metrics_after(self, step: int) -> None:
        """Remove the lines of later steps, which a resumed run will write again."""
        if self.metrics.exists():
            kept = [line for line in self.read_metrics() if line["step"] <= step]
            files.write_text(self.metrics, "".join(f"{json.dumps(line)}\n" for line in kept))

    def prepare(self, config: TrainConfig, *, overwrite: bool) -> None:
        """Create the directory, or empty it if `overwrite`, and write config.yaml.

        Raises:
            RequestError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in self.FILES:
                files.remove_leftovers(self.path / name)
                if overwrite:
                    files.remove(self.path / name)
            files.write_text(self.config, configs.to_yaml(config) + yaml.safe_dump({"versions": versions()}))
        except OSError as error:
            raise RequestError(
                f"out is {self.path}: {error.strerror or error}; expected a directory that can be written"
            ) from None


def versions() -> dict[str, str]:
    """The versions that decide a run's numbers."""
    return {p: version(p) for p in ("fastmim", "torch", "timm")} | {"python": platform.python_version()}


@contextmanager
def opened(
    cls: type[Config],
    settings: Mapping[str, Any],
    *,
    recipes: Recipes,
    overwrite: bool,
    dry_run: bool,
    console: Console,
) -> Iterator[Config]:
    """Yield the config from `resolve`, with the run directory locked for this process unless `dry_run`.

    Raises:
        RequestError: as `resolve`; or another process uses the directory, or it cannot be written.
    """
    out = configs.build(cls, settings).out
    with nullcontext() if dry_run else locking.hold(out, functools.partial(say, console)):
        yield resolve(cls, settings, recipes=recipes, overwrite=overwrite)


def resolve(cls: type[Config], settings: Mapping[str, Any], *, recipes: Recipes, overwrite: bool = False) -> Config:
    """Return the run's config: the settings of the run in `out`, or else of a recipe, overridden by those given.

    Raises:
        RequestError: unknown or wrong settings, or settings that differ from the run that `out` holds.
    """
    given = configs.build(cls, settings)
    directory = RunDirectory(given.out)
    if files.exists(directory.config) and not overwrite:
        stored = directory.read_settings()
        config = configs.build(cls, stored, settings)
        if differing := configs.differences(stored, config):
            raise RequestError(
                f"out is {given.out}, which holds another run ({'; '.join(differing)}): take another --out, "
                f"drop these settings to resume it, or delete it with --overwrite"
            )
        return config
    recipe = getattr(given, "recipe", None)
    if recipe is None:
        return given
    if recipe not in recipes:
        raise RequestError(
            f"recipe is {recipe!r}; expected one of {', '.join(recipes)}{configs.nearest(recipe, recipes)}"
        )
    return configs.build(cls, recipes[recipe](), settings)


def check_config(config: TrainConfig, found: Checkpoint) -> None:
    """Refuse a checkpoint of a run with other settings than config.yaml's, apart from those that may change.

    Raises:
        RequestError: config.yaml has lost or changed settings; the message names them.
    """
    stored = found.manifest["config"]
    differing = configs.differences(stored, config)
    differing += [f"{key} {shown(stored[key])} -> no setting" for key in stored.keys() - configs.to_mapping(config)]
    if differing:
        raise RequestError(
            f"out is {config.out}, whose settings differ from those of its checkpoint {found.path.name} "
            f"({'; '.join(differing)}): restore config.yaml, take another --out, or delete the run with --overwrite"
        )
