"""How good a classifier is on labelled images: top-1, top-5, each class, and who is taken for whom as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from fastmim.config import RunError
from fastmim.data.augment import normalise
from fastmim.data.centers import load_centers
from fastmim.data.sources import Source

TOP = 5
MOST_DRAWN = 1000
"""Classes beyond which no confusion matrix is drawn."""

_WRITTEN, _NUMBERED = 40, 20  # classes up to which the picture has names, and numbers
_INK, _FAINT, _MARGIN = (20, 24, 31), (105, 112, 124), 16


@dataclass(frozen=True)
class Scores:
    """A classifier's answers on N labelled images."""

    labels: np.ndarray
    """(N,) int64."""
    predicted: np.ndarray
    """(N,) int64, the most probable class."""
    in_top5: np.ndarray
    """(N,) bool, whether the label is among the five most probable classes."""
    loss: float
    """Mean cross entropy."""
    classes: list[str]

    @property
    def top1(self) -> float:
        """Share of the images that are classified rightly."""
        return float((self.labels == self.predicted).mean())

    @property
    def counts(self) -> np.ndarray:
        """(C,) int64, images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def per_class(self) -> np.ndarray:
        """(C,) float, share of each class's images that are classified rightly; NaN where there are none."""
        right = np.bincount(self.labels[self.labels == self.predicted], minlength=len(self.classes))
        return np.where(self.counts > 0, right / np.maximum(self.counts, 1), np.nan)

    @property
    def mean_class(self) -> float:
        """Mean of `per_class` over the classes that have images: rare ones count like common ones."""
        return float(np.nanmean(self.per_class))

    @property
    def confusion(self) -> np.ndarray:
        """(C, C) int64: how many images of the row's class were taken for the column's."""
        num = len(self.classes)
        return np.bincount(self.labels * num + self.predicted, minlength=num * num).reshape(num, num)

    def metrics(self) -> dict[str, float]:
        """The numbers that are logged, as shares of 1; top-5 only of more than five classes."""
        numbers = {"val_loss": self.loss, "val_top1": self.top1, "val_mean_class": self.mean_class}
        return numbers | ({"val_top5": float(self.in_top5.mean())} if len(self.classes) > TOP else {})

    def describe(self) -> str:
        """The same in words."""
        top5 = f", {self.in_top5.mean():.1%} top-5" if len(self.classes) > TOP else ""
        return f"{self.top1:.1%} top-1{top5}, {self.mean_class:.1%} mean over classes, loss {self.loss:.3f}"

    def to_mapping(self) -> dict[str, Any]:
        """Everything in plain JSON types; the accuracy of a class without images is None."""
        per_class = {
            name: {"accuracy": None if math.isnan(accuracy) else float(accuracy), "images": int(count)}
            for name, accuracy, count in zip(self.classes, self.per_class, self.counts, strict=True)
        }
        return {"images": len(self.labels), **self.metrics(), "per_class": per_class}


def evaluate(
    classifier: nn.Module,
    source: Source,
    *,
    size: int,
    mean: Tensor,
    std: Tensor,
    batch_size: int = 256,
    num_workers: int = 0,
    bf16: bool = False,
    crop_pct: float = 1.0,
    found_bad: Callable[[list[tuple[str, str]], int], None] = lambda bad, num_seen: None,
) -> Scores:
    """Classify the central crops of labelled images. The model is left in the mode that it was in.

    Args:
        classifier: (B, 3, size, size) normalised -> (B, C) logits.
        source: Has labels and classes.
        mean: (3,) on the classifier's device.
        std: (3,) likewise.
        found_bad: Called with each batch's unreadable images, which do not count, and its number of images.

    Raises:
        RunError: no image can be read.
    """
    was_training = classifier.training
    classifier.eval()
    device = mean.device
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    batches = load_centers(
        source,
        size=size,
        batch_size=batch_size,
        num_workers=num_workers,
        crop_pct=crop_pct,
        pin_memory=device.type == "cuda",
    )
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for batch in batches:
            found_bad(batch["bad"], len(batch["images"]) + len(batch["bad"]))
            if not len(batch["images"]):
                continue
            images, labels = (batch[key].to(device, non_blocking=True) for key in ("images", "labels"))
            logits = classifier(normalise(images, mean, std)).float()
            best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices  # (b, 5)
            loss = F.cross_entropy(logits, labels, reduction="none")
            parts.append((labels, best[:, 0], (best == labels[:, None]).any(1), loss))
    classifier.train(was_training)
    if not parts:
        raise RunError(
            f"none of the {len(source)} images of {source.origin} can be read; expected images to validate on"
        )
    labels, predicted, in_top5, losses = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return Scores(
        labels.numpy(), predicted.numpy(), in_top5.numpy(), losses.double().mean().item(), source.classes or []
    )


def draw_confusion(scores: Scores, *, caption: str) -> Image.Image:
    """The confusion matrix: a row for each class, how its images were classified, in shares of the row.

    The names are there for up to 40 classes, the numbers (in %) for up to 20. Rows of classes without images are grey.
    """
    num = len(scores.classes)
    cell = max(1, min(44, 880 // num))
    fonts = {points: ImageFont.load_default(points) for points in (20, 16, 13)}
    names = [name if len(name) <= 18 else f"{name[:17]}…" for name in scores.classes] if num <= _WRITTEN else []
    font = fonts[13 if cell >= 18 else 16] if cell >= 18 else ImageFont.load_default(10)
    gutter = int(max((font.getlength(name) for name in names), default=0)) + _MARGIN
    left, top = _MARGIN + gutter, 76 + (gutter if names else 0)
    sheet = Image.new("RGB", (max(left + num * cell + _MARGIN, 460), top + num * cell + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 10), f"{scores.top1:.1%} of {len(scores.labels):,} images right", _INK, fonts[20])
    draw.text(
        (_MARGIN, 38), f"rows: true class, columns: predicted, each row sums to 100 %; {caption}", _FAINT, fonts[13]
    )
    shares = scores.confusion / np.maximum(scores.counts, 1)[:, None]  # (C, C)
    sheet.paste(
        _heat(shares, scores.counts > 0).resize((num * cell, num * cell), Image.Resampling.NEAREST), (left, top)
    )
    for row, name in enumerate(names):
        middle = (row + 0.5) * cell
        draw.text((left - 8, top + middle), name, _INK, font, anchor="rm")
        _write_upwards(sheet, name, font, (left + middle, top - 8))
        for column in range(num if num <= _NUMBERED else 0):
            if scores.counts[row] and shares[row, column] >= 0.005:
                place = (left + (column + 0.5) * cell, top + middle)
                colour = "white" if shares[row, column] > 0.5 else _INK
                draw.text(place, f"{100 * shares[row, column]:.0f}", colour, font, anchor="mm")
    return sheet


def _heat(shares: np.ndarray, present: np.ndarray) -> Image.Image:
    """(C, C) in [0, 1] -> white to blue, by the root so that few errors show; grey where the class has no images."""
    strength = np.sqrt(shares)[..., None]
    pixels = 255 * (1 - strength) + np.array([24, 74, 140]) * strength
    pixels[~present] = 225
    return Image.fromarray(pixels.round().astype(np.uint8))


def _write_upwards(sheet: Image.Image, text: str, font: Any, place: tuple[float, float]) -> None:
    """Write from `place`, the middle of the text's lower edge after it is turned, upwards."""
    length, height = int(font.getlength(text)) + 2, int(font.size * 1.3)
    strip = Image.new("RGB", (length, height), "white")
    ImageDraw.Draw(strip).text((0, height / 2), text, _INK, font, anchor="lm")
    turned = strip.transpose(Image.Transpose.ROTATE_90)
    sheet.paste(turned, (round(place[0] - height / 2), round(place[1] - length)))
