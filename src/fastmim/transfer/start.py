"""The start of a training on labelled data: which weights the network is initialised from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastmim import weights
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import listed


@dataclass(frozen=True)
class Start:
    """The initial weights of a network. JSON types: checkpoints store it, so resuming does not read the weights."""

    kind: str
    """"none", "timm" or "file"."""
    backbone: str
    arguments: dict[str, Any] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    """Blocks that pre-training skipped, which start untrained."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    range: str | None = None
    """That of the greys that the weights were trained on, as the setting `range` has it."""
    origin: str = "nothing: an untrained network"
    """A description for the user."""

    def describe(self) -> list[str]:
        """The start as lines of a plan."""
        fresh = f"fresh     {listed(self.fresh)}: left out of pre-training, so they start untrained"
        return [f"weights   {self.origin}", *([fresh] if self.fresh else [])]


def find_start(name: str, *, backbone: str | None, backbone_args: Mapping[str, Any]) -> Start:
    """Find the weights that `--weights` names; the arguments are those of `weights.open_weights`.

    Raises:
        RequestError: there are no such weights, or they are of another architecture than expected.
    """
    opened = weights.open_weights(name, backbone=backbone, backbone_args=backbone_args)
    return Start(
        opened.kind,
        opened.architecture,
        opened.arguments,
        fresh=list(opened.untrained),
        mean=list(opened.mean),
        std=list(opened.std),
        range=opened.range,
        origin=opened.origin,
    )
