"""Pictures of segmentations: images under the colours of their classes, and label images with a palette."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_OPACITY = 0.6
_GOLDEN = 0.6180339887
_MARGIN, _HEAD, _MOST_NAMED, _LEAST = 12, 44, 12, 640
_INK = (20, 24, 31)
_IGNORED = (0, 0, 0)


def colours(num_classes: int) -> np.ndarray:
    """(C, 3) uint8: colours as different as may be, the same for the same number every time."""
    found = []
    for number in range(num_classes):
        hue, ring = (number * _GOLDEN) % 1, number % 3
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.55, 0.95)[ring], (0.95, 0.85, 0.6)[ring])
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return np.array(found, dtype=np.uint8).reshape(-1, 3)


def overlay(pixels: np.ndarray, classes: np.ndarray, num_classes: int) -> Image.Image:
    """Lay the classes' colours over an image.

    Args:
        pixels: (H, W, 3) uint8.
        classes: (H, W) integers; negative ones are drawn black.
        num_classes: C.
    """
    palette = np.concatenate([colours(num_classes), np.array([_IGNORED], dtype=np.uint8)])
    layer = palette[classes]  # -1 is the last
    mixed = (1 - _OPACITY) * pixels + _OPACITY * layer
    return Image.fromarray(mixed.round().astype(np.uint8))


def label_image(numbers: np.ndarray, first: int, num_classes: int) -> Image.Image:
    """A label image: the numbers of classes, which begin at `first`; up to 256 have a palette, so that viewers show."""
    if first + num_classes > 256:
        return Image.fromarray(numbers.astype(np.uint16))
    image = Image.fromarray(numbers.astype(np.uint8)).convert("L")
    image.putpalette([0] * (3 * first) + colours(num_classes).ravel().tolist())
    return image


def comparison(
    pixels: np.ndarray, labels: np.ndarray, predicted: np.ndarray, *, classes: list[str], caption: str
) -> Image.Image:
    """An image, its labels and its prediction side by side, and the names of the commonest classes.

    Args:
        pixels: (H, W, 3) uint8.
        labels: (H, W) integers, -1 without a class.
        predicted: (H, W) integers.
        classes: Names.
        caption: Written above.
    """
    height, width = labels.shape
    panels = [Image.fromarray(pixels), *(overlay(pixels, part, len(classes)) for part in (labels, predicted))]
    small, large = ImageFont.load_default(13), ImageFont.load_default(16)
    names = np.bincount(np.concatenate([labels[labels >= 0], predicted.ravel()]), minlength=len(classes))
    named = [n for n in np.argsort(-names)[:_MOST_NAMED].tolist() if names[n]]
    sheet = Image.new(
        "RGB", (max(_LEAST, 3 * width + 4 * _MARGIN), height + _HEAD + 2 * _MARGIN + 18 * len(named)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 6), caption, _INK, large)
    for number, (title, panel) in enumerate(zip(("image", "labels", "prediction"), panels, strict=True)):
        left = _MARGIN + number * (width + _MARGIN)
        draw.text((left, 27), title, _INK, small)
        sheet.paste(panel, (left, _HEAD))
    palette = colours(len(classes))
    for row, number in enumerate(named):
        top = _HEAD + height + _MARGIN + 18 * row
        draw.rectangle((_MARGIN, top, _MARGIN + 12, top + 12), fill=tuple(int(v) for v in palette[number]))
        draw.text((_MARGIN + 20, top - 1), classes[number], _INK, small)
    return sheet
