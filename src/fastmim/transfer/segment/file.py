"""A segmenter as a weights file."""

from __future__ import annotations

from dataclasses import dataclass

from fastmim.backbone.multiscale import MultiScale
from fastmim.transfer.dense_file import Format, check_numbers
from fastmim.transfer.segment.segmenter import Segmenter


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


def _check(design: Design) -> None:
    depths = design.depths if isinstance(design.depths, list) else [design.depths]
    check_numbers(design.channels, design.test_stride)
    check_numbers(design.first, *depths, least=0)
    if len(depths) > 8 or not isinstance(design.aux_weight, int | float):
        raise ValueError("a number is out of range")
    if design.head not in ("upernet", "linear") or design.test not in ("slide", "whole"):
        raise ValueError("its head or test is unknown")


def _build(trunk: MultiScale, design: Design) -> Segmenter:
    return Segmenter(
        trunk, len(design.classes), head=design.head, channels=design.channels, aux_weight=design.aux_weight
    )


FORMAT = Format(
    kind="segmenter",
    command="fastmim segment",
    backbone=("maps.trunk.model.", "maps.model."),
    design=Design,
    check=_check,
    depths=lambda design: design.depths,
    build=_build,
)
