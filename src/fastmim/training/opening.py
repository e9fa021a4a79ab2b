"""The config of a request: that of the run which the directory holds, or a new one; or it is refused."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from rich.console import Console

from fastmim import config as configs
from fastmim.errors import RequestError, shown
from fastmim.system import files, locking
from fastmim.system.display import say
from fastmim.system.run_directory import RunDirectory
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.settings import TrainConfig

Config = TypeVar("Config", bound=TrainConfig)
Recipes = Mapping[str, Callable[[], dict[str, Any]]]


_WORDS = ("", "samples", "timm", "none")  # what settings may say in place of a path
_LENGTH = frozenset({"epochs", "steps"})  # `resuming.check_length` compares them in steps


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
    settings = in_full(cls, settings)
    given = configs.build(cls, settings)
    directory = RunDirectory(given.out)
    if files.exists(directory.config) and not overwrite:
        stored = directory.read_settings()
        if settings.get("range") == "auto" and "range" in stored:  # the run has found its range
            settings = {**settings, "range": stored["range"]}
        config = configs.build(cls, stored, settings)
        if differing := configs.differences(stored, config, ignore=_LENGTH):
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


def in_full(cls: type[TrainConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with absolute paths, so that a run resumes wherever its command is given."""
    found = dict(settings)
    for name in cls.PLACES & settings.keys():
        text = os.fspath(settings[name]) if isinstance(settings[name], os.PathLike) else settings[name]
        if not isinstance(text, str) or text in _WORDS or "://" in text:
            continue
        if files.exists(path := files.expanded(text)) or any(character in text for character in "*?[{"):
            found[name] = str(path.absolute())
    return found


def check_config(config: TrainConfig, found: Checkpoint) -> None:
    """Refuse a checkpoint of a run with other settings than config.yaml's, apart from those that may change.

    Raises:
        RequestError: config.yaml has lost or changed settings; the message names them.
    """
    stored = found.manifest["config"]
    differing = configs.differences(stored, config, ignore=_LENGTH)
    differing += [f"{key} {shown(stored[key])} -> no setting" for key in stored.keys() - configs.to_mapping(config)]
    if differing:
        raise RequestError(
            f"out is {config.out}, whose settings differ from those of its checkpoint {found.path.name} "
            f"({'; '.join(differing)}): restore config.yaml, take another --out, or delete the run with --overwrite"
        )
