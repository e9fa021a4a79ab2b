"""The start of fine-tuning: which weights a classifier is initialised from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastmim import weights
from fastmim.backbone import Classifier
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.transfer.classify.settings import FinetuneConfig


@dataclass(frozen=True)
class Start:
    """The initial weights of a classifier. JSON types: checkpoints store it, so resuming does not read the weights."""

    kind: str
    """"none", "timm" or "file"."""
    backbone: str
    arguments: dict[str, Any] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    """Blocks that pre-training skipped, which start untrained."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    origin: str = "nothing: an untrained network"
    """A description for the user."""


def find_start(config: FinetuneConfig) -> Start:
    """Find the weights that a config names.

    Raises:
        RequestError: there are no such weights, or they are of another architecture than expected.
    """
    opened = weights.open_weights(config.weights, backbone=config.backbone, backbone_args=config.backbone_args)
    return Start(
        opened.kind,
        opened.architecture,
        opened.arguments,
        fresh=list(opened.untrained),
        mean=list(opened.mean),
        std=list(opened.std),
        origin=opened.origin,
    )


def build(config: FinetuneConfig, start: Start, *, num_classes: int, resuming: bool) -> Classifier:
    """Make the classifier at its start.

    Args:
        resuming: Do not load the weights, because a checkpoint replaces them.

    Raises:
        RequestError: the weights do not fit, or the model cannot take the size.
        RunError: timm's weights cannot be loaded.
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
