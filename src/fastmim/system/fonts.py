"""Fonts for pictures: Pillow's own for ASCII, else the first of the installed ones that has all letters of a text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageFont

# Usual ones, which Pillow finds by their names on Linux, macOS and Windows: most alphabets, then East Asia.
_USUAL = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "segoeui.ttf",
    "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "PingFang.ttc", "msyh.ttc", "meiryo.ttc",
    "malgun.ttf",
)  # fmt: skip
_NO_LETTERS = ("LastResort", "STIX", "cm")  # matplotlib's: boxes with the name of a script, and symbols
_NO_CHARACTER = "\uffff"  # which no font has


def font_for(text: str, points: int) -> Any:
    """A Pillow font that has all letters of a text, or None if no installed font has them.

    The fonts that matplotlib brings, or finds, are looked at too if it is installed.
    """
    if text.isascii():
        return ImageFont.load_default(points)
    letters = "".join(sorted({letter for letter in text if not letter.isascii()}))
    path = next((path for path in _files() if _has(path, letters)), None)
    return ImageFont.truetype(path, points) if path else None


def fitting(text: str, points: int) -> tuple[str, Any]:
    """A text and a font that has its letters; what no installed font has becomes Python's escapes."""
    font = font_for(text, points)
    return (text, font) if font else (text.encode("ascii", "backslashreplace").decode(), ImageFont.load_default(points))


def _files() -> Iterator[str]:
    yield from _USUAL
    yield from _of_matplotlib()


@cache
def _of_matplotlib() -> tuple[str, ...]:
    """Paths, upright fonts of usual weight first."""
    if find_spec("matplotlib") is None:
        return ()
    from matplotlib import font_manager  # takes a second

    def rank(entry: Any) -> tuple[bool, str]:
        return (entry.style, entry.weight, entry.stretch) != ("normal", 400, "normal"), entry.fname

    fonts = sorted(font_manager.fontManager.ttflist, key=rank)
    return tuple(font.fname for font in fonts if not Path(font.fname).name.startswith(_NO_LETTERS))


@cache
def _has(path: str, letters: str) -> bool:
    """Whether a font has all of these letters: none of them is drawn like a character that does not exist."""
    try:
        font = ImageFont.truetype(path, 20, layout_engine=ImageFont.Layout.BASIC)
    except OSError:  # not installed, or damaged
        return False
    unknown = bytes(font.getmask(_NO_CHARACTER))
    visible = [letter for letter in letters if unicodedata.category(letter)[0] not in "MZ"]  # neither mark nor space
    return all(mask and mask != unknown for mask in (bytes(font.getmask(letter)) for letter in visible))
