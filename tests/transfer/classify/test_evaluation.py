"""Scores against numbers counted by hand, and the confusion matrix's picture."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import ImageDraw, ImageFont
from torch import nn

from fastmim.data.sources import Source
from fastmim.transfer.classify import confusion
from fastmim.transfer.classify.confusion import draw_confusion, legend
from fastmim.transfer.classify.evaluation import Scores, answer, score


def scores(labels: list[int], predicted: list[int], num_classes: int) -> Scores:
    labels_, predicted_ = np.array(labels), np.array(predicted)
    return Scores(labels_, predicted_, np.ones(len(labels), bool), 0.5, [f"class {n}" for n in range(num_classes)])


def test_accuracies_by_hand() -> None:
    found = scores([0, 0, 0, 0, 0, 0, 1, 1, 3], [0, 0, 0, 0, 0, 1, 1, 0, 2], 4)
    assert found.top1 == 6 / 9
    assert found.per_class[[0, 1, 3]].tolist() == [5 / 6, 1 / 2, 0] and math.isnan(found.per_class[2])
    assert found.mean_class == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    assert found.confusion.tolist() == [[5, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert found.to_mapping()["per_class"]["class 2"] == {"accuracy": None, "images": 0}
    assert found.metrics().keys() == {"val_loss", "val_top1", "val_mean_class"}
    assert "val_top5" in scores([0], [0], 6).metrics()


class Grey(Source):
    """Image n is all n; its label n % 7."""

    origin, classes = "grey", [str(number) for number in range(7)]
    labels = np.arange(20) % 7

    def __len__(self) -> int:
        return 20

    def read(self, index: int) -> np.ndarray:
        return np.full((8, 8), index, np.uint8)

    def name(self, index: int) -> str:
        return str(index)


class ByBrightness(nn.Module):
    """Right about label n % 7 but for images 14 and above, where the label comes second, or seventh for 19."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        number = (images[:, 0, 0, 0] * 255).round().long()
        logits = nn.functional.one_hot(number % 7, 7).float()
        logits[number >= 14] += 2 * nn.functional.one_hot((number[number >= 14] + 1) % 7, 7)
        logits[number == 19] = torch.tensor([6.0, 5, 4, 3, 2, -1, 1])
        return logits


@pytest.mark.parametrize("batch_size", [1, 6, 64])
def test_top5_and_loss(batch_size: int) -> None:
    model = ByBrightness().train()
    how = {"size": 8, "mean": torch.zeros(3), "std": torch.ones(3), "batch_size": batch_size}
    found = score(
        [answer(model, Grey(), indices=indices, **how) for indices in (range(1, 20, 2), [], [2, 0], range(4, 20, 2))],
        Grey(),
    )
    assert model.training
    assert found.top1 == 14 / 20 and found.metrics()["val_top5"] == 19 / 20
    images = torch.arange(20)[:, None, None, None].expand(20, 3, 8, 8) / 255
    expected = nn.functional.cross_entropy(model(images), torch.from_numpy(Grey.labels))
    assert found.loss == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("num_classes", [2, 12, 40, 300, 1000])
def test_the_picture_shows_the_diagonal_and_greys_absent_classes(num_classes: int) -> None:
    labels = [number for number in range(num_classes) if number != 1] * 2
    picture = draw_confusion(scores(labels, labels, num_classes), caption="step 3")
    assert picture.width >= 460 and max(picture.size) < 1400
    pixels = np.asarray(picture).astype(int)
    cell = max(1, min(44, 880 // num_classes))
    left = picture.width - 16 - num_classes * cell if picture.width > 460 else None
    top = picture.height - 16 - num_classes * cell
    if left is not None:
        corner = pixels[top + 1 if cell > 1 else top, left + 1 if cell > 1 else left]
        assert corner.tolist() == [24, 74, 140]  # all of class 0 is right
        grey = pixels[top + cell + cell // 2, left + num_classes * cell - 1]
        assert grey.tolist() == [225, 225, 225]


def test_names_that_no_font_has_are_numbers_with_a_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, said, *rest, **kw: drawn.append(said) or text(self, xy, said, *rest, **kw),
    )
    monkeypatch.setattr(
        confusion, "font_for", lambda name, points: ImageFont.load_default(points) if name.isascii() else None
    )
    names = ["$gut_1$", "良品", "a\x1b[2Jb", "x" * 30]
    found = dataclasses.replace(scores([0, 1, 2, 3], [0, 1, 2, 3], 4), classes=names)
    draw_confusion(found, caption="step 3")
    assert legend(names) == "1\t良品\n"
    for name in ("$gut_1$", "1", r"a\x1b[2Jb", "x" * 16 + ".."):
        assert drawn.count(name) == 2, name  # of the row and of the column
    assert "names of the numbers: classes.txt" in drawn
    drawn.clear()
    draw_confusion(scores([0, 1], [0, 1], 2), caption="step 3")
    assert legend(["class 0"]) == "" and not any("classes.txt" in said for said in drawn)
