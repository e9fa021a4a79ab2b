"""What `--weights` names, as a classifier to be trained: a run, a weights file, a timm model, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmim import backbone as backbones
from fastmim import weights
from fastmim.backbone import Classifier
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError
from fastmim.transfer.classify.settings import FinetuneConfig

_EXPECTED = "a run directory, a weights file, a timm model name, or none (an untrained --backbone)"


@dataclass(frozen=True)
class Start:
    """What a classifier begins as. JSON types: a checkpoint's manifest holds it, so resuming reads no weights."""

    kind: str
    """"none", "timm" or "file"."""
    backbone: str
    arguments: dict[str, Any] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    """Blocks that pre-training left out, which begin untrained."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    origin: str = "nothing: an untrained network"
    """For the reader."""


def find_start(config: FinetuneConfig) -> Start:
    """Look at what `weights` names.

    Raises:
        RequestError: there is no such thing, or it is another architecture than asked for.
    """
    if config.weights == "none":
        if config.backbone is None:
            raise RequestError("weights is none, but no backbone is given; expected its name: --backbone NAME")
        return Start("none", backbones.resolve(config.backbone), dict(config.backbone_args))
    if Path(config.weights).exists():
        return _of_file(config)
    try:
        name = backbones.resolve(config.weights)
    except RequestError as error:
        raise RequestError(f"weights is {config.weights!r}; expected {_EXPECTED} ({error})") from None
    _expect(config, {"architecture": name, "arguments": {}})
    _, mean, std, _ = backbones.published_input(name)
    return Start("timm", name, mean=list(mean), std=list(std), origin=f"timm's weights of {name}")


def _of_file(config: FinetuneConfig) -> Start:
    _, facts = weights.read(config.weights)
    _expect(config, facts)
    trained = "" if not facts["untrained"] else f", {facts['trained_blocks']} of {facts['num_blocks']} blocks trained"
    return Start(
        "file",
        facts["architecture"],
        facts["arguments"],
        fresh=facts["untrained"],
        mean=list(facts.get("mean") or IMAGENET_MEAN),
        std=list(facts.get("std") or IMAGENET_STD),
        origin=f"{config.weights}: {facts['architecture']} trained at {facts['img_size']} px{trained}",
    )


def _expect(config: FinetuneConfig, facts: Mapping[str, Any]) -> None:
    weights.check(facts, backbone=config.backbone, backbone_args=config.backbone_args or None)


def build(config: FinetuneConfig, start: Start, *, num_classes: int, resuming: bool) -> Classifier:
    """The classifier as it begins.

    Args:
        resuming: Leave the weights out: a checkpoint follows.

    Raises:
        RequestError: the weights do not fit, or the model cannot take the size.
        RunError: timm's weights could not be had.
    """
    classifier = Classifier(
        start.backbone,
        num_classes=num_classes,
        img_size=config.img_size,
        args=start.arguments,
        drop_path=config.drop_path,
        pretrained=start.kind == "timm" and not resuming,
        own_pooling=start.kind == "timm",
    )
    if config.checkpoint_activations:
        classifier.checkpoint_activations()
    if start.kind == "file" and not resuming:
        backbone = weights.load_backbone(config.weights, img_size=classifier.input_size)
        classifier.load(backbone.state_dict(), fresh=start.fresh)
    return classifier
