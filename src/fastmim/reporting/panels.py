"""Pictures for the page: the panels of the sheets in `samples/`, cut out and compressed."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MAX_FRAMES = 12
"""Steps whose pictures are on the page, of a run that drew more."""
MAX_BYTES = 1_700_000
"""Of all pictures of a page, as characters of their data URIs."""

_NAME = re.compile(r"([a-z][a-z_-]{0,30})_(\d{1,15})\.png")
_SIDE, _SHEET = 176, 1000  # of a panel and of a whole sheet on the page, in pixels
_MAX_PIXELS = 60_000_000
_MAX_ROWS, _MAX_PANELS = 6, 6
_QUALITY = 62


@dataclass(frozen=True)
class Frame:
    """A picture of one step, cut into panels: a list for each kind of panel with one data URI an image."""

    step: int
    titles: list[str]
    panels: list[list[str]]


def find(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """The pictures of a run by their kind, each with its steps in order: `step_000000100.png` is of kind `step`."""
    found: dict[str, list[tuple[int, Path]]] = {}
    if folder.is_dir():
        for path in folder.iterdir():
            if match := _NAME.fullmatch(path.name):
                found.setdefault(match[1], []).append((int(match[2]), path))
    return {kind: sorted(pictures) for kind, pictures in sorted(found.items())}


def frames(pictures: list[tuple[int, Path]], problems: list[str], *, most: int = MAX_FRAMES) -> list[Frame]:
    """The pictures of one kind; of more than `most`, each second, fourth or so, and the last. Broken ones: problems.

    So a page that is written again with a new picture shows those that it had, which need not be compressed again.
    """
    found = []
    for step, path in _spread(pictures, most):
        try:
            stamp = path.stat()
            titles, panels = _cut(path, stamp.st_mtime_ns, stamp.st_size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            problems.append(f"samples/{path.name} cannot be shown ({str(error)[:100] or type(error).__name__})")
            continue
        found.append(Frame(step, titles, panels))
    return found


def _spread(pictures: list[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    stride = 1
    while len(kept := {*pictures[::stride], *pictures[-1:]}) > most:
        stride *= 2
    return sorted(kept)


def picture(path: Path, problems: list[str]) -> str:
    """One whole picture as a data URI; empty, and a problem, if it is broken."""
    shown = frames([(0, path)], problems)
    return shown[0].panels[0][0] if shown else ""


@lru_cache(maxsize=4 * MAX_FRAMES)
def _cut(path: Path, changed: int, size: int) -> tuple[list[str], list[list[str]]]:
    """Titles, and panels by title; what a page showed before need not be compressed again."""
    with Image.open(path, formats=["PNG"]) as sheet:
        if sheet.width * sheet.height > _MAX_PIXELS:
            raise ValueError(f"{sheet.width} x {sheet.height} pixels")
        layout = _layout(sheet.info, sheet.width, sheet.height)
        if layout is None:
            return [""], [[_encode(sheet.convert("RGB"), _SHEET)]]
        left, top, width, height, gap, rows, titles = layout
        image = sheet.convert("RGB")
        panels = []
        for column in range(len(titles)):
            x = left + column * (width + gap)
            boxes = [(x, top + row * (height + gap)) for row in range(rows)]
            panels.append([_encode(image.crop((x, y, x + width, y + height)), _SIDE) for x, y in boxes])
        return titles, panels


def _layout(
    info: Mapping[Any, Any], sheet_width: int, sheet_height: int
) -> tuple[int, int, int, int, int, int, list[str]] | None:
    """Where the panels are, as `method.pictures` has noted; None for a picture without them."""
    try:
        noted = json.loads(info["fastmim"])
        numbers = [noted[name] for name in ("left", "top", "width", "height", "gap", "rows")]
        titles = [str(title) for title in noted["titles"]][:_MAX_PANELS]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not titles or not all(type(number) is int and 0 <= number < 1 << 16 for number in numbers):
        return None
    left, top, width, height, gap, rows = numbers
    right, bottom = left + len(titles) * (width + gap) - gap, top + rows * (height + gap) - gap
    if not (width and height and rows) or right > sheet_width or bottom > sheet_height:
        return None
    return left, top, width, height, gap, min(rows, _MAX_ROWS), titles


def _encode(image: Image.Image, side: int) -> str:
    """A data URI of a picture, at most `side` pixels wide; a picture that steps share is compressed once."""
    return _encode_bytes(image.tobytes(), image.size, side)


@lru_cache(maxsize=256)
def _encode_bytes(pixels: bytes, size: tuple[int, int], side: int) -> str:
    image = Image.frombytes("RGB", size, pixels)
    image.thumbnail((side, 4 * side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=1)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def within(frames: list[Frame], most: int) -> list[Frame]:
    """As many of the frames, evenly spread, as have at most `most` characters together; the last one in any case."""
    while len(frames) > 1 and num_characters(frames) > most:
        keep = np.unique(np.linspace(0, len(frames) - 1, len(frames) * 2 // 3).round().astype(int))
        frames = [frames[index] for index in keep] if len(frames) > 2 else frames[-1:]
    return frames


def num_characters(frames: list[Frame]) -> int:
    """Characters of the frames' data URIs, each counted once."""
    return sum(map(len, {uri for frame in frames for row in frame.panels for uri in row}))
