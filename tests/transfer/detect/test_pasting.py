"""Copy-paste: objects of one image on another, with what they cover taken from those below."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import masks_to_boxes

import fastmim
import shapes
from fastmim.transfer.detect.coco import Scenes, open_scenes
from fastmim.transfer.detect.crops import Jitter, load_crops
from fastmim.transfer.detect.pasting import pasted


def crop(colour: int, *places: tuple[int, int, int, int]) -> dict[str, torch.Tensor]:
    """An image of 8 x 8 pixels of a colour, with rectangles (left, top, right, bottom) of the next colours."""
    image = torch.full((3, 8, 8), colour, dtype=torch.uint8)
    masks = torch.zeros(len(places), 8, 8, dtype=torch.uint8)
    for number, (left, top, right, bottom) in enumerate(places):
        image[:, top:bottom, left:right] = colour + number + 1
        masks[number, top:bottom, left:right] = 1
    labels = torch.arange(len(places)) + colour
    return {"image": image, "boxes": torch.tensor(places).float().reshape(-1, 4), "labels": labels, "masks": masks}


def test_objects_are_pasted_and_cover_those_below() -> None:
    below = crop(10, (0, 0, 4, 4), (5, 5, 7, 7), (0, 6, 2, 8))
    above = crop(20, (2, 0, 6, 4), (5, 5, 8, 8), (0, 5, 3, 8))
    found, other = pasted([below, above], [[0.1, 0.4, 0.9], [0.9, 0.9, 0.9]])
    assert other is above  # none was chosen
    assert found["labels"].tolist() == [10, 12, 20, 21]  # the second is covered, the third of the other not chosen
    assert found["boxes"].tolist() == [[0, 0, 2, 4], [0, 6, 2, 8], [2, 0, 6, 4], [5, 5, 8, 8]]
    assert [int(mask.sum()) for mask in found["masks"]] == [8, 4, 16, 9]
    assert found["image"][0, 0].tolist() == [11, 11, 21, 21, 21, 21, 10, 10]
    assert below["masks"][0].sum() == 16  # unchanged


def test_an_image_alone_or_without_objects_stays_as_it_is() -> None:
    alone, empty = crop(10, (0, 0, 4, 4)), crop(20)
    assert pasted([alone], [[0.0]])[0] is alone
    found, filled = pasted([alone, empty], [[0.0], [0.0]])
    assert found is alone
    assert filled["boxes"].tolist() == [[0, 0, 4, 4]] and filled["labels"].tolist() == [10]
    assert filled["image"][0, 0].tolist() == [11] * 4 + [20] * 4


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return open_scenes(str(shapes.draw_coco(tmp_path_factory.mktemp("d") / "coco"))).train


def test_batches_with_pasted_objects_are_consistent_and_the_same_again(scenes: Scenes) -> None:
    jitter = Jitter(size=64, scale=(0.8, 1.5), flip=True, fill=(124, 116, 104))
    settings: dict[str, Any] = {"jitter": jitter, "seed": 1, "global_batch": 4, "last_step": 3}

    def batches(first_step: int = 0, *, paste: bool = True) -> list[dict[str, Any]]:
        with closing(load_crops(scenes, paste=paste, first_step=first_step, **settings)) as stream:
            return list(stream)

    found, plain = batches(), batches(paste=False)
    assert sum(len(batch["labels"]) for batch in found) > sum(len(batch["labels"]) for batch in plain)
    for batch in found:
        assert sum(batch["counts"]) == len(batch["boxes"]) == len(batch["masks"]) == len(batch["labels"])
        ends = torch.tensor([0.0, 0.0, 1.0, 1.0])
        assert torch.equal(batch["boxes"], masks_to_boxes(batch["masks"]) + ends)
    [again] = batches(2)
    assert all(torch.equal(again[name], found[2][name]) for name in ("images", "boxes", "labels", "masks"))


def test_requests_that_are_refused(tmp_path: Path) -> None:
    data = shapes.draw_coco(tmp_path / "coco")
    settings: dict[str, Any] = {
        "data": str(data), "out": tmp_path / "run", "backbone": "resnet10t", "img_size": 64, "copy_paste": True,
        "device": "cpu", "dry_run": True, "num_workers": 0,
    }  # fmt: skip
    with pytest.raises(fastmim.RequestError, match=r"copy_paste is True, and .* has boxes alone; expected outlines"):
        fastmim.detect(masks=False, **settings)
    with pytest.raises(fastmim.RequestError, match=r"one image is read at once; expected two or more.*--micro-batch"):
        fastmim.detect(micro_batch=1, **settings)
