"""Pictures of detections: images with boxes, masks, names and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastmim.system.text import printable
from fastmim.transfer.detect.coco import Scenes
from fastmim.transfer.detect.evaluation import Found
from fastmim.transfer.detect.outlines import checked, from_mask, to_mask
from fastmim.transfer.segment.pictures import colours

SURE = 0.5
"""Objects of a lower score are not drawn."""

_OPACITY = 0.45
_MARGIN, _HEAD, _LEAST = 12, 44, 640
_SIDE = 320  # of smaller images, enlarged by whole numbers so that names can be read
_INK = (20, 24, 31)


def draw(pixels: np.ndarray, size: tuple[int, int], objects: Sequence[Found], classes: Sequence[str]) -> Image.Image:
    """Draw objects on an image, the least sure first.

    Args:
        pixels: (h, w, 3) uint8, the image in any size.
        size: (H, W) of the image in which the objects were found.
        objects: Those to draw.
        classes: Names.
    """
    factor = max(1, _SIDE // max(pixels.shape[:2]))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = pixels.shape[:2]
    palette, mixed = colours(len(classes)), pixels.astype(np.float32)
    for item in reversed(objects):
        if item.runs is not None:
            mask = to_mask(checked(item.runs, *size), *size)
            rows, columns = (
                ((np.arange(n) + 0.5) * (o / n)).astype(int) for n, o in zip((height, width), size, strict=True)
            )
            inside = mask[rows[:, None], columns[None]]
            mixed[inside] = (1 - _OPACITY) * mixed[inside] + _OPACITY * palette[item.label]
    picture = Image.fromarray(mixed.round().astype(np.uint8))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for item in reversed(objects):
        left, top, box_width, box_height = (
            value * factor for value, factor in zip(item.box, (width / size[1], height / size[0]) * 2, strict=True)
        )
        colour = tuple(int(value) for value in palette[item.label])
        pen.rectangle((left, top, left + box_width, top + box_height), outline=colour, width=2)
        text = f"{printable(classes[item.label])} {item.score:.0%}"
        place = (left + 3, max(0, top - 14))
        pen.rectangle(pen.textbbox(place, text, font), fill=colour)
        pen.text(place, text, "white", font)
    return picture


def labelled(scenes: Scenes, index: int) -> list[Found]:
    """The objects of an image as its annotations have them, as if they had been found for sure."""
    objects, size = scenes.objects, scenes.sizes[index].tolist()
    found = []
    for number in scenes.objects_of(index):
        runs = from_mask(to_mask(objects.outlines[number], *size)) if objects.outlines else None
        found.append(Found(int(objects.labels[number]), 1.0, objects.boxes[number].tolist(), runs))
    return found


def comparison(annotated: Image.Image, predicted: Image.Image, *, caption: str) -> Image.Image:
    """Two pictures of an image side by side, its annotations and a prediction, under a caption."""
    width, height = annotated.size
    small, large = ImageFont.load_default(13), ImageFont.load_default(16)
    sheet = Image.new("RGB", (max(_LEAST, 2 * width + 3 * _MARGIN), height + _HEAD + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 6), caption, _INK, large)
    for number, (title, panel) in enumerate((("annotations", annotated), ("prediction", predicted))):
        left = _MARGIN + number * (width + _MARGIN)
        pen.text((left, 27), title, _INK, small)
        sheet.paste(panel, (left, _HEAD))
    return sheet
