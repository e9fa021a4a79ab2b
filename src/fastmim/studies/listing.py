"""The list of `fastmim backbones`: timm's models with stride, width and parameters, from a table or made anew."""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from fastmim.errors import RequestError

TABLE = Path(__file__).with_name("backbones.csv")
"""All models of one version of timm at one image size, in timm's order; the first line names both."""


class Entry(NamedTuple):
    """A timm model at an image size."""

    name: str
    stride: int
    """Pixels between neighbouring features."""
    width: int
    """Channels of the last map."""
    parameters: int


def backbones(pattern: str = "*", *, max_parameters: float = 150, img_size: int = 128) -> list[Entry]:
    """List the timm models that can be pre-trained.

    Args:
        pattern: Names to list, such as "swin*".
        max_parameters: The largest model, in millions of parameters.
        img_size: Image side in pixels, at which the stride is told.

    Raises:
        RequestError: no name matches.

    Example:
        >>> [row.stride for row in fastmim.backbones("swin_tiny_patch4*")]
        [32]
    """
    return [entry for entry in _found(pattern, img_size)[1] if entry.parameters <= max_parameters * 1e6]


def print_list(pattern: str, *, max_parameters: float = 150, img_size: int = 128) -> None:
    """Print what `backbones` returns, line by line as it is found."""
    wide, found = _found(pattern, img_size)
    print(f"{'name':<{wide}}  stride  width  parameters (M)")
    for name, stride, width, parameters in found:
        if parameters <= max_parameters * 1e6:
            print(f"{name:<{wide}}  {stride:>6}  {width:>5}  {parameters / 1e6:>14.1f}", flush=True)


def _found(pattern: str, img_size: int) -> tuple[int, Iterator[Entry]]:
    """The length of the longest name, and the models one by one: without the table each takes a moment."""
    if img_size < 1:
        raise RequestError(f"img_size is {img_size}; expected at least 1 pixel, such as 128")
    if entries := known(pattern, img_size):
        return max(len(entry.name) for entry in entries), iter(entries)
    from fastmim.backbone import describe, find  # not with this module: they import torch and timm for seconds

    names = find(pattern)
    return max(map(len, names)), (Entry(name, *describe(name, img_size)) for name in names)


def known(pattern: str, img_size: int) -> list[Entry]:
    """The matching entries of the table; none if it is of another version of timm or another image size."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        if next(file).strip() != title(img_size):
            return []
        entries = [Entry(name, *map(int, numbers)) for name, *numbers in csv.reader(file)]
    matching = set(fnmatch.filter([entry.name for entry in entries], pattern))
    return [entry for entry in entries if entry.name in matching]


def title(img_size: int) -> str:
    """The first line of a table for the installed timm."""
    return f"# timm {version('timm')}, {img_size} px: name, stride, width, parameters"
