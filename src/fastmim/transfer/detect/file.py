"""A detector as a weights file: its backbone as timm loads it, the layers on it beside, and facts to build both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmim import weights
from fastmim.backbone.multiscale import MultiScale
from fastmim.errors import RequestError, first_line
from fastmim.transfer.detect.detector import Detector
from fastmim.weights.export import normalisation

FACTS = "detector"
_TRUNK, _REST = "pyramid.trunk.model.", "detector."


@dataclass(frozen=True)
class Design:
    """What identifies a detector besides its backbone. JSON types: weights files store it."""

    classes: list[str]
    categories: list[int]
    """The numbers of the classes in annotation files."""
    masks: bool
    channels: int
    window: int | None
    img_size: int


@dataclass(frozen=True)
class Opened:
    """A detector from a weights file."""

    detector: Detector
    design: Design
    mean: list[float]
    std: list[float]
    range: str | None
    """That of the greys of the training images, as the setting `range` has it."""


def save(path: Path, detector: Detector, design: Design, *, about: Mapping[str, Any]) -> None:
    """Write a detector; `--weights` of any command takes its backbone from the same file.

    Args:
        about: More facts for the metadata (JSON types): recipe, data, steps, mean, std.
    """
    trunk = detector.trunk
    tensors = {_renamed(name): tensor.detach().cpu() for name, tensor in detector.state_dict().items()}
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
    """Load the detector of a run directory or a weights file, in evaluation mode.

    Raises:
        RequestError: there are no such weights, or they hold no detector.
    """
    tensors, facts = weights.files.read(source)
    if FACTS not in facts:
        raise RequestError(
            f"weights is {source}, which holds no detector; expected a run of `fastmim detect` or its weights: train "
            f"one first"
        )
    try:
        design = _design(facts[FACTS])
        trunk = MultiScale(
            facts["architecture"],
            img_size=design.img_size,
            args=facts["arguments"],
            drop_path=0.0,
            window=design.window,
        )
        detector = Detector(trunk, len(design.classes), masks=design.masks, channels=design.channels)
        own: dict[str, Tensor] = {name: tensors[_renamed(name)] for name in detector.state_dict()}
        detector.load_state_dict(own)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"weights is {source}, whose detector does not fit its description ({first_line(error)[:200]}); expected "
            f"a file that `fastmim detect` wrote"
        ) from None
    found = normalisation(facts)
    return Opened(detector.eval(), design, found["mean"], found["std"], facts.get("range"))


def _design(stored: Any) -> Design:
    """The design in a file's metadata; ValueError if it is none, or larger than any detector."""
    if not isinstance(stored, dict) or stored.keys() != {field.name for field in fields(Design)}:
        raise ValueError("its metadata lacks something")
    design = Design(**stored)
    numbers = [design.channels, design.img_size, 1 if design.window is None else design.window]
    if any(type(number) is not int or not 1 <= number <= 8192 for number in numbers) or type(design.masks) is not bool:
        raise ValueError("a number is out of range")
    if not design.classes or not all(isinstance(name, str) for name in design.classes):
        raise ValueError("its classes are no names")
    if len(design.categories) != len(design.classes) or not all(type(number) is int for number in design.categories):
        raise ValueError("its classes have no numbers")
    return design


def _renamed(name: str) -> str:
    """The name of a detector's tensor in the file: timm's own for the backbone's."""
    return name.removeprefix(_TRUNK) if name.startswith(_TRUNK) else _REST + name
