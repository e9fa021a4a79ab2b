"""The points of a study: each combination of the swept settings as a pre-training config, and from scratch."""

from __future__ import annotations

import itertools
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim import config as configs
from fastmim.errors import RequestError
from fastmim.method.settings import PretrainConfig
from fastmim.published import RECIPES
from fastmim.studies import settings
from fastmim.studies.settings import StudyConfig
from fastmim.training import opening

SCRATCH = "scratch"
BASE = "base"

SMALL_SIZE = 64
"""The largest side in pixels of small images, which get the small ViT and light augmentation."""

SMALL: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3},
    "lr": 2e-3,
}
"""The default network of a study of small images, and a learning rate that suits it."""

# Settings that the study decides for every run, and the flags that it takes instead.
_DECIDED = {
    "data": "--data or --pretrain-data",
    "out": "--out",
    "seed": "--seeds",
    "epochs": "--budget or --epochs",
    "steps": "--budget or --steps",
    "device": "--device",
    "num_workers": "--num-workers",
    "trackers": "none of them",
    "probe": "--probe",
}
# Settings that do not change what is learned.
_UNSWEPT = {
    "save_every",
    "keep_every",
    "log_every",
    "picture_every",
    "probe_every",
    "max_bad_share",
    "compile",
    "report",
}


@dataclass(frozen=True)
class Point:
    """A pre-training to compare, or training from scratch."""

    name: str
    """Its swept values, such as `target=hog img_size=16`; `scratch` without pre-training; with one_at_a_time `base`
    for the first value of every setting."""
    folder: str
    """Its directory's name."""
    swept: dict[str, Any]
    config: PretrainConfig | None
    """The pre-training, except for length, seed, device and directory; None from scratch."""
    backbone: str
    backbone_args: dict[str, Any]

    @property
    def sizes(self) -> list[int]:
        """The image sides in pixels of its pre-training."""
        return [size for size, _ in self.config.sizes()] if self.config else []


def expand(config: StudyConfig, data: str) -> list[Point]:
    """List the points of a study: from scratch for each network, then the combinations of the sweep in order.

    Args:
        config: The study.
        data: The images to pre-train on.

    Raises:
        RequestError: a setting or recipe is unknown, a value is wrong, or two points are the same run.
    """
    fixed = _parse_set("set", config.set, PretrainConfig)
    swept = _parse_sweep(config.sweep)
    if both := fixed.keys() & {key for key, _ in swept}:
        raise RequestError(
            f"{', '.join(sorted(both))} is both in sweep and in set; expected one of them: drop the other"
        )
    combinations = _combine(swept, one_at_a_time=config.one_at_a_time)
    own: dict[str, Any] = {"range": config.range, "backbone": config.backbone, "backbone_args": config.backbone_args}
    own = {key: value for key, value in own.items() if value}
    small = _are_small([fixed | combination for combination in combinations])
    points: list[Point] = []
    for number, combination in enumerate(combinations, start=1):
        hidden = combinations[0] if config.one_at_a_time else {}
        shown = {key: value for key, value in combination.items() if key not in hidden or hidden[key] != value}
        name = " ".join(f"{key}={'none' if value is None else value}" for key, value in shown.items()) or BASE
        try:
            resolved = _resolve(own | fixed | combination | {"data": data}, small=small)
            if "teacher" not in resolved.targets():  # `set` names the teacher for those points of a sweep that have one
                others = {key: value for key, value in fixed.items() if not key.startswith("teacher")}
                resolved = _resolve(own | others | combination | {"data": data}, small=small)
        except RequestError as error:
            raise RequestError(f"{name}: {error}") from None
        if same := next((point.name for point in points if _same(point.config, resolved)), None):
            raise RequestError(f"{name} is the same run as {same}; expected points that differ: drop one of the values")
        folder = f"{number:02d}-{_slug(name)}"
        values = {key: getattr(resolved, key) for key in combination}
        points.append(Point(name, folder, values, resolved, resolved.backbone, resolved.backbone_args))
    return [*_scratches(points), *points]


def _combine(swept: list[tuple[str, list[Any]]], *, one_at_a_time: bool) -> list[dict[str, Any]]:
    """Every combination of the values, or the first values and those that differ from them in one setting."""
    if one_at_a_time:
        first = {key: values[0] for key, values in swept}
        return [first, *(first | {key: value} for key, values in swept for value in values[1:])]
    keys = [key for key, _ in swept]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(values for _, values in swept))]


def _resolve(given: Mapping[str, Any], *, small: bool) -> PretrainConfig:
    recipe = given.get("recipe")
    defaults: dict[str, Any] = {}
    if not recipe and "backbone" not in given:
        defaults = SMALL if small else {}
        if defaults and "backbone_args" in given:
            defaults = defaults | {"backbone_args": SMALL["backbone_args"] | given["backbone_args"]}
            given = {key: value for key, value in given.items() if key != "backbone_args"}
    free = {"epochs": None, "steps": 1, "trackers": "none"}  # replaces a recipe's epochs
    # With `overwrite` the directory's contents do not matter.
    out = Path("none")
    return opening.resolve(PretrainConfig, {**defaults, **given, **free, "out": out}, recipes=RECIPES, overwrite=True)


def _are_small(combinations: list[dict[str, Any]]) -> bool:
    """Whether every image size of the sweep is small."""
    sizes: list[Any] = []
    for combination in combinations:
        stages = combination.get("stages")
        if stages:
            sizes += re.findall(r"(\d+)\s*:", str(stages))
        else:
            sizes.append(combination.get("img_size", PretrainConfig.img_size))
    return all(str(size).isdigit() and int(size) <= SMALL_SIZE for size in sizes)


def _parse_sweep(texts: tuple[str, ...]) -> list[tuple[str, list[Any]]]:
    if not texts:
        raise RequestError("sweep is not given; expected settings to compare: --sweep target=hog,pixels")
    swept: list[tuple[str, list[Any]]] = []
    for text in texts:
        key, values = settings.pair("sweep", text)
        _check_key("sweep", text, key, PretrainConfig)
        listed = [settings.parse_value(value) for value in values.split(settings.separator(key))]
        if key in (seen for seen, _ in swept) or any(listed.count(value) > 1 for value in listed):
            raise RequestError(
                f"sweep is {text!r}; expected each setting once and each value once: drop the repetition"
            )
        swept.append((key, listed))
    return swept


def _parse_set(name: str, texts: tuple[str, ...], cls: type[Any]) -> dict[str, Any]:
    found = {}
    for text in texts:
        key, value = settings.pair(name, text)
        _check_key(name, text, key, cls)
        found[key] = settings.parse_value(value)
    return found


def parse_finetune_set(config: StudyConfig, cls: type[Any]) -> dict[str, Any]:
    """The settings in `finetune_set`, checked against the fine-tuning settings `cls`."""
    return _parse_set("finetune_set", config.finetune_set, cls)


def _check_key(name: str, text: str, key: str, cls: type[Any]) -> None:
    known = typing.get_type_hints(cls)
    if key in _DECIDED:
        raise RequestError(f"{name} is {text!r}; the study decides {key} for all runs: use {_DECIDED[key]}")
    if key not in known or (name == "sweep" and key in _UNSWEPT):
        usable = [word for word in known if word not in _DECIDED and word not in _UNSWEPT]
        remedy = configs.nearest(key, usable) or f"; expected one of {', '.join(usable)}"
        raise RequestError(f"{name} is {text!r}; unknown setting {key!r}{remedy}")


def _same(config: PretrainConfig | None, other: PretrainConfig) -> bool:
    def effect(of: PretrainConfig) -> dict[str, Any]:
        return configs.to_mapping(of) | {"sizes": of.sizes(), "img_size": None, "stages": None, "recipe": None}

    return config is not None and effect(config) == effect(other)


def _scratches(points: list[Point]) -> list[Point]:
    """A point from scratch for each network among the points."""
    networks = {json.dumps([p.backbone, p.backbone_args], sort_keys=True): p for p in points}
    found: list[Point] = []
    for number, point in enumerate(networks.values()):
        name = SCRATCH if len(networks) == 1 else f"{SCRATCH} {point.backbone}"
        if name in (other.name for other in found):
            name = f"{name} {point.backbone_args}"
        folder = SCRATCH if len(networks) == 1 else f"{SCRATCH}-{number}-{_slug(point.backbone)}"
        found.append(Point(name, folder, {}, None, point.backbone, point.backbone_args))
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-")[:80]
