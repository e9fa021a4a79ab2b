"""The list of `fastmim backbones`: timm's models with stride, width and parameters, from a table or made anew."""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("backbones.csv")
"""All models of one version of timm at one image size, in timm's order; the first line names both."""


class Entry(NamedTuple):
    """A model at an image size."""

    name: str
    stride: int
    width: int
    parameters: int


def print_list(pattern: str, *, max_parameters: float = 150e6, img_size: int = 128) -> int:
    """Print stride, width and parameters of the models whose names match a shell pattern.

    Returns:
        0, the exit status.

    Raises:
        RequestError: no name matches.
    """
    entries = known(pattern, img_size)
    if entries:
        wide = max(len(entry.name) for entry in entries)
        found: Iterator[Entry] = iter(entries)
    else:
        from fastmim.backbone import describe, find  # not with this module: they import torch and timm for seconds

        names = find(pattern)
        wide, found = max(map(len, names)), (Entry(name, *describe(name, img_size)) for name in names)
    print(f"{'name':<{wide}}  stride  width  parameters (M)")
    for name, stride, width, parameters in found:
        if parameters <= max_parameters:
            print(f"{name:<{wide}}  {stride:>6}  {width:>5}  {parameters / 1e6:>14.1f}", flush=True)
    return 0


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
