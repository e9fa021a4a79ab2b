"""Outlines of objects in COCO's forms, polygons and run lengths: checked, and turned into masks."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from faster_coco_eval import mask as runs

from fastmim.data.unreadable import BadImage

_MOST_CHUNKS = 13  # 5 bits each: more than any number of pixels needs


class WrongOutline(ValueError):  # noqa: N818 - describes an object, not the program
    """An object's outline cannot be used; the message is the reason, as in "2 objects with ..."."""


def checked(segmentation: Any, height: int, width: int) -> bytes:
    """Check an object's "segmentation", and keep it as JSON.

    Polygons of fewer than three points are left out, and corners far outside the image are moved nearer to it.

    Args:
        segmentation: From an annotation file.
        height: Of the image in pixels.
        width: Of the image in pixels.

    Raises:
        WrongOutline: it is none of this image.
    """
    if isinstance(segmentation, dict):
        return json.dumps(_checked_runs(segmentation, height, width)).encode()
    if not isinstance(segmentation, list):
        raise WrongOutline("no outline")
    polygons = [_checked_polygon(corners, height, width) for corners in segmentation]
    if not any(polygons):
        raise WrongOutline("an outline of fewer than three points" if polygons else "no outline")
    return json.dumps([corners for corners in polygons if corners]).encode()


def _checked_polygon(corners: Any, height: int, width: int) -> list[float]:
    """x, y, x, y, ...; empty if these are fewer than three points."""
    if not isinstance(corners, list) or len(corners) % 2 or not all(_is_number(value) for value in corners):
        raise WrongOutline("an outline that is no list of x, y, x, y, ...")
    if len(corners) < 6:
        return []
    sides = (width, height)
    return [min(max(float(value), -sides[n % 2]), 2.0 * sides[n % 2]) for n, value in enumerate(corners)]


def _checked_runs(found: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    counts = found.get("counts")
    if found.get("size") != [height, width]:
        raise WrongOutline("run lengths of another size than the image")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts}
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise WrongOutline("run lengths that are no numbers of pixels")
    if sum(counts) != height * width:
        raise WrongOutline("run lengths of another size than the image")
    return {"size": [height, width], "counts": counts}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def parsed(outline: bytes) -> Any:
    """An outline from `checked`, as COCO's tools take it.

    Raises:
        BadImage: its run lengths are not those of an image of its size.
    """
    segmentation = json.loads(outline)
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        height, width = segmentation["size"]
        counts = _read_counts(segmentation["counts"])
        if min(counts, default=0) < 0 or sum(counts) != height * width:
            raise BadImage(f"run lengths of an object that do not sum to its {width} x {height} pixels")
    return segmentation


def to_mask(outline: bytes, height: int, width: int) -> np.ndarray:
    """An outline from `checked` as (H, W) bool, rasterised as COCO's tools do; BadImage as `parsed`."""
    segmentation = parsed(outline)
    if isinstance(segmentation, list):
        return np.asarray(runs.decode(runs.merge(runs.frPyObjects(segmentation, height, width)))).astype(bool)
    counts = segmentation["counts"]
    lengths = np.array(_read_counts(counts) if isinstance(counts, str) else counts)
    values = np.arange(len(lengths)) % 2 == 1  # from 0, in turn, down the columns
    return np.repeat(values, lengths).reshape(width, height).T


def from_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> COCO's compressed run lengths, as JSON types."""
    found = runs.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = found["counts"]
    size = [int(side) for side in found["size"]]
    return {"size": size, "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _read_counts(text: str) -> list[int]:
    """COCO's compressed run lengths as numbers: 5 bits a character, the third number and later less the one before.

    Raises:
        BadImage: these are none.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= 5 * _MOST_CHUNKS:
            raise BadImage("run lengths of an object that cannot be read")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number
            if bits & 16:  # whose sign it has
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise BadImage("run lengths of an object that end in a number")
    return counts
