"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastmim.system.fonts import font_for
from fastmim.system.text import printable
from fastmim.transfer.classify.evaluation import Scores

MAX_CLASSES = 1000
"""The most classes for which a confusion matrix is drawn."""

LEGEND = "classes.txt"
"""The file beside the pictures for names that they cannot show."""

_MAX_NAMED, _MAX_NUMBERED, _MAX_LETTERS = 40, 20, 18
"""The most classes for which the picture shows names, and numbers."""

_INK, _FAINT, _MARGIN = (20, 24, 31), (105, 112, 124), 16


def draw_confusion(scores: Scores, *, caption: str) -> Image.Image:
    """Draw the confusion matrix: a row for each true class, in shares of the row.

    Up to 40 classes are named, and up to 20 have numbers (in %). Rows of classes without images are grey. A name that
    no installed font can write is replaced by the class's number, as `legend` lists them.
    """
    num = len(scores.classes)
    cell = max(1, min(44, 880 // num))
    fonts = {points: ImageFont.load_default(points) for points in (20, 16, 13)}
    points = 13 if cell >= 18 else 10
    names = [_written(number, name, points) for number, name in enumerate(scores.classes)] if num <= _MAX_NAMED else []
    gutter = int(max((font.getlength(name) for name, font in names), default=0)) + _MARGIN
    left, top = _MARGIN + gutter, 76 + (gutter if names else 0)
    sheet = Image.new("RGB", (max(left + num * cell + _MARGIN, 460), top + num * cell + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 10), f"{scores.top1:.1%} of {len(scores.labels):,} images correct", _INK, fonts[20])
    draw.text(
        (_MARGIN, 38), f"rows: true class, columns: predicted, each row sums to 100 %; {caption}", _FAINT, fonts[13]
    )
    if legend(scores.classes):
        draw.text((_MARGIN, 55), f"names of the numbers: {LEGEND}", _FAINT, fonts[13])
    shares = scores.confusion / np.maximum(scores.counts, 1)[:, None]  # (C, C)
    sheet.paste(
        _heat(shares, scores.counts > 0).resize((num * cell, num * cell), Image.Resampling.NEAREST), (left, top)
    )
    for row, (name, font) in enumerate(names):
        middle = (row + 0.5) * cell
        draw.text((left - 8, top + middle), name, _INK, font, anchor="rm")
        _write_upwards(sheet, name, font, (left + middle, top - 8))
        for column in range(num if num <= _MAX_NUMBERED else 0):
            if scores.counts[row] and shares[row, column] >= 0.005:
                place = (left + (column + 0.5) * cell, top + middle)
                colour = "white" if shares[row, column] > 0.5 else _INK
                draw.text(place, f"{100 * shares[row, column]:.0f}", colour, font, anchor="mm")
    return sheet


def legend(classes: Sequence[str]) -> str:
    """A line "number, tab, name" for each class that no installed font can write; "" if there are none."""
    shown = [_shortened(name) for name in classes] if len(classes) <= _MAX_NAMED else []
    missing = [number for number, name in enumerate(shown) if font_for(name, 10) is None]
    return "".join(f"{number}\t{printable(classes[number])}\n" for number in missing)


def _written(number: int, name: str, points: int) -> tuple[str, Any]:
    """What stands for a class, and the font to write it in."""
    shown = _shortened(name)
    font = font_for(shown, points)
    return (shown, font) if font else (str(number), ImageFont.load_default(points))


def _shortened(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _MAX_LETTERS else f"{shown[: _MAX_LETTERS - 2]}.."


def _heat(shares: np.ndarray, present: np.ndarray) -> Image.Image:
    """(C, C) in [0, 1] -> white to blue by the square root, so that few errors show; classes without images in grey."""
    strength = np.sqrt(shares)[..., None]
    pixels = 255 * (1 - strength) + np.array([24, 74, 140]) * strength
    pixels[~present] = 225
    return Image.fromarray(pixels.round().astype(np.uint8))


def _write_upwards(sheet: Image.Image, text: str, font: Any, place: tuple[float, float]) -> None:
    """Write upwards; `place` is the middle of the lower edge of the rotated text."""
    length, height = int(font.getlength(text)) + 2, int(font.size * 1.3)
    strip = Image.new("RGB", (length, height), "white")
    ImageDraw.Draw(strip).text((0, height / 2), text, _INK, font, anchor="lm")
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    sheet.paste(turned, (round(place[0] - height / 2), round(place[1] - length)))
