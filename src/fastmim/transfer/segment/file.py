"""A segmenter as a weights file: its backbone as timm loads it, the layers on it beside, and facts to build both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmim import weights
from fastmim.backbone.multiscale import MultiScale
from fastmim.errors import RequestError, first_line
from fastmim.transfer.segment.segmenter import Segmenter
from fastmim.weights.export import normalisation

FACTS = "segmenter"
_TRUNK, _REST = ("maps.trunk.model.", "maps.model."), "segmenter."


@dataclass(frozen=True)
class Design:
    """What identifies a segmenter besides its backbone. JSON types: weights files store it."""

    classes: list[str]
    first: int
    """Number of the first class in label images: 0, or 1 if 0 is no class."""
    head: str
    channels: int
    aux_weight: float
    depths: list[int] | int
    window: int | None
    img_size: int
    test: str
    test_stride: int


@dataclass(frozen=True)
class Opened:
    """A segmenter from a weights file."""

    segmenter: Segmenter
    design: Design
    mean: list[float]
    std: list[float]
    range: str | None
    """That of the greys of the training images, as the setting `range` has it."""


def save(path: Path, segmenter: Segmenter, design: Design, *, about: Mapping[str, Any]) -> None:
    """Write a segmenter; `--weights` of any command takes its backbone from the same file.

    Args:
        about: More facts for the metadata (JSON types): recipe, data, steps, mean, std.
    """
    trunk = segmenter.trunk
    state = {name: tensor.detach().cpu() for name, tensor in segmenter.state_dict().items()}
    tensors = {_renamed(name): tensor for name, tensor in state.items()}
    facts = {
        "architecture": trunk.name,
        "arguments": trunk.arguments(),
        "img_size": trunk.img_size,
        "num_blocks": trunk.num_blocks,
        "trained_blocks": trunk.num_blocks,
        "untrained": [],
        FACTS: asdict(design),
    }
    weights.write(path, tensors, facts | dict(about))


def load(source: str) -> Opened:
    """Load the segmenter of a run directory or a weights file, in evaluation mode.

    Raises:
        RequestError: there are no such weights, or they hold no segmenter.
    """
    tensors, facts = weights.files.read(source)
    if FACTS not in facts:
        raise RequestError(
            f"weights is {source}, which holds no segmenter; expected a run of `fastmim segment` or its weights: train "
            f"one first"
        )
    try:
        design = _design(facts[FACTS])
        trunk = MultiScale(
            facts["architecture"],
            img_size=design.img_size,
            args=facts["arguments"],
            drop_path=0.0,
            depths=design.depths,
            window=design.window,
        )
        segmenter = Segmenter(
            trunk, len(design.classes), head=design.head, channels=design.channels, aux_weight=design.aux_weight
        )
        own: dict[str, Tensor] = {name: tensors[_renamed(name)] for name in segmenter.state_dict()}
        segmenter.load_state_dict(own)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"weights is {source}, whose segmenter does not fit its description ({first_line(error)[:200]}); expected "
            f"a file that `fastmim segment` wrote"
        ) from None
    found = normalisation(facts)
    return Opened(segmenter.eval(), design, found["mean"], found["std"], facts.get("range"))


def _design(stored: Any) -> Design:
    """The design in a file's metadata; ValueError if it is none, or larger than any segmenter."""
    names = {field.name for field in fields(Design)}
    if not isinstance(stored, dict) or stored.keys() != names:
        raise ValueError("its metadata lacks something")
    design = Design(**stored)
    depths = design.depths if isinstance(design.depths, list) else [design.depths]
    numbers = [design.first, design.channels, design.img_size, design.test_stride, *depths, design.window or 1]
    wrong = any(type(number) is not int or not 0 <= number <= 8192 for number in numbers) or len(depths) > 8
    if wrong or not isinstance(design.aux_weight, int | float):
        raise ValueError("a number is out of range")
    if not design.classes or not all(isinstance(name, str) for name in design.classes):
        raise ValueError("its classes are no names")
    if design.head not in ("upernet", "linear") or design.test not in ("slide", "whole"):
        raise ValueError("its head or test is unknown")
    return design


def _renamed(name: str) -> str:
    """The name of a segmenter's tensor in the file: timm's own for the backbone's."""
    for prefix in _TRUNK:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return _REST + name
