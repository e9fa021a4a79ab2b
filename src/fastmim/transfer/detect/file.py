"""A detector as a weights file."""

from __future__ import annotations

from dataclasses import dataclass

from fastmim.transfer.dense_file import Format, check_numbers
from fastmim.transfer.detect.detector import Detector


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


def _check(design: Design) -> None:
    check_numbers(design.channels)
    if type(design.masks) is not bool:
        raise ValueError("a number is out of range")
    if len(design.categories) != len(design.classes) or not all(type(number) is int for number in design.categories):
        raise ValueError("its classes have no numbers")


FORMAT = Format(
    kind="detector",
    command="fastmim detect",
    backbone=("pyramid.trunk.model.",),
    design=Design,
    check=_check,
    depths=lambda design: 1,
    build=lambda trunk, design: Detector(trunk, len(design.classes), masks=design.masks, channels=design.channels),
)
