"""Annotation files in COCO's format: read, and checked entry by entry."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastmim.errors import RequestError, first_line, shown
from fastmim.system.files import read_regular
from fastmim.transfer.detect.outlines import WrongOutline, checked

_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Entry:
    """An image of an annotation file."""

    id: int
    name: str
    """Its path within the folder of images."""
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of all images, one after another."""

    first: np.ndarray
    """(N + 1,) int64: those of image i are first[i] to first[i + 1] - 1."""
    boxes: np.ndarray
    """(M, 4) float64: left, top, width, height in pixels, as in the file."""
    labels: np.ndarray
    """(M,) int64, positions in the list of classes."""
    areas: np.ndarray
    """(M,) float64, as in the file, in square pixels; that of the box if the file has none."""
    crowds: np.ndarray
    """(M,) bool: several objects as one, which are neither trained nor count as missed."""
    outlines: list[bytes]
    """M outlines, see `outlines.checked`; empty if there are only boxes."""


def read_file(file: Path) -> dict[str, list[Any]]:
    """Read an annotation file.

    Returns:
        Its lists "images", "annotations" and "categories", of objects not yet checked.

    Raises:
        RequestError: it cannot be read, or is none.
    """
    try:
        content = json.loads(read_regular(file))
    except OSError as error:
        raise RequestError(f"data is {file}: {error.strerror or error}; expected an annotation file") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"data is {file}, which is not JSON ({first_line(error)}); expected an annotation file in COCO's format"
        ) from None
    for key in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise RequestError(
                f'data is {file}, without a list "{key}"; expected an annotation file in COCO\'s format, with '
                f'"images", "annotations" and "categories"'
            )
    return {key: content[key] for key in _LISTS}


def read_categories(file: Path, entries: list[Any]) -> dict[int, str]:
    """The categories' names by number, in ascending order; RequestError if there are none, or one is wrong."""
    names: dict[int, str] = {}
    for position, entry in enumerate(entries):
        number = _integer(file, "categories", position, entry, "id")
        if number in names:
            raise RequestError(f"data is {file} with two categories {number}; expected different numbers")
        name = str(_value(file, "categories", position, entry, "name"))
        if name in names.values():
            raise RequestError(f"data is {file} with two categories called {shown(name)}; expected different names")
        names[number] = name
    if not names:
        raise RequestError(f"data is {file} without categories; expected at least one")
    return dict(sorted(names.items()))


def read_images(file: Path, entries: list[Any]) -> list[Entry]:
    """The images; RequestError if one is wrong, or its name leads out of the folder of images."""
    found: dict[int, Entry] = {}
    for position, entry in enumerate(entries):
        number, height, width = (_integer(file, "images", position, entry, key) for key in ("id", "height", "width"))
        name = _value(file, "images", position, entry, "file_name")
        path = PurePosixPath(name) if isinstance(name, str) and name and "\0" not in name else None
        if path is None or path.is_absolute() or ".." in path.parts:
            raise RequestError(
                f"data is {file}, whose image {number} has the file_name {shown(name)}; expected a path within the "
                f"folder of images"
            )
        if number in found or min(height, width) < 1:
            what = "the id of another" if number in found else f"{width} x {height} pixels"
            raise RequestError(f"data is {file}, whose image {number} has {what}; expected COCO's format")
        found[number] = Entry(number, str(path), height, width)
    return list(found.values())


def read_objects(
    file: Path,
    entries: list[Any],
    images: Sequence[Entry],
    categories: Sequence[int],
    *,
    absent: frozenset[int],
    masks: bool,
    skipped: Counter[str],
) -> Objects:
    """The objects of images; those that cannot be used are left out.

    Args:
        file: For messages.
        entries: "annotations" of the file.
        images: Those that are there.
        categories: The numbers of the classes.
        absent: The ids of images that are not there, whose objects do not count.
        masks: Read outlines, and leave objects without one out.
        skipped: Counts what is wrong with the objects that are left out.

    Raises:
        RequestError: an object lacks something.
    """
    positions = {image.id: position for position, image in enumerate(images)}
    labels = {number: label for label, number in enumerate(categories)}
    rows: list[list[tuple[list[float], int, float, bool, bytes]]] = [[] for _ in images]
    for number, entry in enumerate(entries):
        image_id = _integer(file, "annotations", number, entry, "image_id")
        category = _integer(file, "annotations", number, entry, "category_id")
        box = _box(file, number, entry)
        if image_id in absent:
            continue
        position, label = positions.get(image_id), labels.get(category)
        if position is None or label is None:
            skipped["an unknown category" if label is None else "an unknown image"] += 1
            continue
        image = images[position]
        if wrong := _wrong_box(box, image):
            skipped[wrong] += 1
            continue
        try:
            outline = checked(entry.get("segmentation"), image.height, image.width) if masks else b""
        except WrongOutline as error:
            skipped[str(error)] += 1
            continue
        area = entry.get("area")
        is_area = type(area) in (int, float) and 0 <= area < math.inf
        rows[position].append(
            (box, label, float(area) if is_area else box[2] * box[3], bool(entry.get("iscrowd")), outline)
        )
    return _joined(rows, masks=masks)


def _joined(rows: list[list[tuple[list[float], int, float, bool, bytes]]], *, masks: bool) -> Objects:
    flat = [row for found in rows for row in found]
    return Objects(
        first=np.cumsum([0, *(len(found) for found in rows)], dtype=np.int64),
        boxes=np.array([row[0] for row in flat], dtype=np.float64).reshape(-1, 4),
        labels=np.array([row[1] for row in flat], dtype=np.int64),
        areas=np.array([row[2] for row in flat], dtype=np.float64),
        crowds=np.array([row[3] for row in flat], dtype=bool),
        outlines=[row[4] for row in flat] if masks else [],
    )


def _wrong_box(box: list[float], image: Entry) -> str:
    """What is wrong with a box (left, top, width, height), as in "2 objects with ..."; "" if nothing is."""
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return "a box of no area"
    if left >= image.width or top >= image.height or left + width <= 0 or top + height <= 0:
        return "a box outside the image"
    return ""


def _box(file: Path, number: int, entry: Any) -> list[float]:
    box = _value(file, "annotations", number, entry, "bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) and abs(v) < 1e9 for v in box):
        raise RequestError(
            f"data is {file}, whose annotations[{number}] has the bbox {shown(box)}; expected left, top, width, height"
        )
    return [float(value) for value in box]


def _integer(file: Path, kind: str, position: int, entry: Any, key: str) -> int:
    value = _value(file, kind, position, entry, key)
    if type(value) is not int:
        raise RequestError(
            f"data is {file}, whose {kind}[{position}] has the {key} {shown(value)}; expected a whole number"
        )
    return value


def _value(file: Path, kind: str, position: int, entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise RequestError(f'data is {file}, whose {kind}[{position}] has no "{key}"; expected COCO\'s format')
    return entry[key]
