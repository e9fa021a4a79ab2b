"""Mask R-CNN's parts: strides, pooling, crops and losses against what they must be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList

import shapes
from fastmim.backbone.multiscale import MultiScale
from fastmim.transfer.detect.coco import Scenes, open_scenes
from fastmim.transfer.detect.crops import Jitter, jittered, load_crops, load_whole
from fastmim.transfer.detect.detector import Detector
from fastmim.transfer.detect.regions import STRIDES, Anchors, Pooler

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
PLAIN: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
FILL = (124, 116, 104)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return open_scenes(str(shapes.draw_coco(tmp_path_factory.mktemp("d") / "coco"))).train


def make(name: str, *, masks: bool = True, num_classes: int = 3) -> Detector:
    args = SMALL if name.startswith("convnext") else PLAIN
    torch.manual_seed(0)
    trunk = MultiScale(name, img_size=64, args=args, drop_path=0.0)
    return Detector(trunk, num_classes, masks=masks, channels=8, num_regions=16)


def batches(scenes: Scenes, **changes: Any) -> Iterator[dict[str, Any]]:
    settings: dict[str, Any] = {"jitter": Jitter(size=64, scale=(0.5, 1.5), flip=True, fill=FILL)} | {
        "seed": 1,
        "global_batch": 4,
        "first_step": 0,
        "last_step": 4,
    }
    with closing(load_crops(scenes, **(settings | changes))) as stream:
        yield from stream


def arguments(batch: dict[str, Any]) -> dict[str, Any]:
    own = {name: batch[name] for name in ("boxes", "labels", "counts", "masks") if name in batch}
    return own | {"images": batch["images"] / 128 - 1}


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_every_parameter_is_trained_even_without_objects(name: str, scenes: Scenes) -> None:
    detector, [batch, *_] = make(name), list(batches(scenes, last_step=1))
    found = detector(**arguments(batch))
    assert found["loss"].isfinite() and set(found) == {"loss", "proposal_loss", "class_loss", "box_loss", "mask_loss"}
    assert found["loss"].item() == pytest.approx(sum(v.item() for n, v in found.items() if n != "loss"), rel=1e-5)
    found["loss"].backward()
    trained = dict(detector.named_parameters())
    assert not [n for n, p in trained.items() if p.grad is None and p.requires_grad]
    detector.zero_grad()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "counts": [0, 0]}
    nothing["masks"] = torch.zeros(0, 50, 70, dtype=torch.uint8)
    loss = detector(torch.zeros(2, 3, 50, 70), **nothing)["loss"]
    loss.backward()
    assert loss.isfinite() and not [n for n, p in trained.items() if p.grad is None and p.requires_grad]
    groups = detector.parameter_groups(weight_decay=0.05, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in trained.values())


def test_predictions_of_an_image_of_any_size_without_masks() -> None:
    detector = make("convnext_atto", masks=False, num_classes=5).eval()
    detector.heads.score_thresh = 0.0
    with torch.no_grad():
        found = detector.detect(torch.randn(3, 37, 91))
    assert found["boxes"].shape == (100, 4) and set(found) == {"boxes", "labels", "scores"}
    assert set(found["labels"].tolist()) <= set(range(5)) and found["boxes"].min() >= 0
    assert found["boxes"][:, 2].max() <= 91 and found["boxes"][:, 3].max() <= 37
    assert (found["scores"].diff() <= 0).all()


def test_boxes_keep_their_precision_in_bfloat16(scenes: Scenes) -> None:
    """Numbers of 8 bits would place boxes on multiples of 4 pixels at the far side of an image of 1024."""
    detector = make("convnext_atto", masks=False).eval()
    detector.heads.score_thresh = 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = detector.detect(torch.randn(3, 64, 64))
    assert found["boxes"].dtype == torch.float32
    assert not torch.equal(found["boxes"], found["boxes"].bfloat16().float())


def test_anchors_have_the_strides_of_the_maps() -> None:
    images = ImageList(torch.zeros(2, 3, 128, 192), [(100, 170), (128, 192)])
    maps = [torch.zeros(2, 1, 128 // s, 192 // s, dtype=torch.bfloat16) for s in STRIDES]
    anchors, again = Anchors()(images, maps)
    assert anchors is again and anchors.dtype == torch.float32
    assert len(anchors) == 3 * sum(128 * 192 // s**2 for s in STRIDES)
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert middles[: 3 * 48 : 3, 0].tolist() == [4.0 * n for n in range(48)]  # the first row, at stride 4
    assert middles[-6 * 3 :: 3].tolist() == [[64.0 * x, 64.0 * y] for y in range(2) for x in range(3)]
    sides = anchors[:, 2:] - anchors[:, :2]
    assert sides[1].tolist() == [32.0, 32.0] and sides[-2].tolist() == [512.0, 512.0]


@pytest.mark.parametrize(("side", "level"), [(16.0, 0), (150.0, 1), (300.0, 2), (600.0, 3)])
def test_regions_are_pooled_where_they_lie(side: float, level: int) -> None:
    """Each map holds its own x, so that the pooled values are the places of the region's cells."""
    maps = {}
    for number, stride in enumerate(STRIDES[:4]):
        length = 1024 // stride
        x = (torch.arange(length) + 0.5) * stride + 10_000 * number
        maps[str(stride)] = x.expand(1, 1, length, length).contiguous()
    box = torch.tensor([[200.0, 300.0, 200.0 + side, 300.0 + side]])
    pooled = Pooler(4)(maps, [box], [(700, 1000)])
    expected = 200 + side * (torch.arange(4) + 0.5) / 4 + 10_000 * level
    assert pooled.shape == (1, 1, 4, 4) and torch.allclose(pooled[0, 0], expected.expand(4, 4), atol=1e-2)


def test_regions_of_several_images_and_none_at_all() -> None:
    maps = {str(s): torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 256 // s, 256 // s) for s in STRIDES[:4]}
    small, large = [8.0, 8.0, 24.0, 24.0], [0.0, 0.0, 250.0, 250.0]
    pooled = Pooler(2)(maps, [torch.tensor([large]), torch.tensor([small, large])], [(256, 256)] * 2)
    assert pooled.mean(dim=(1, 2, 3)).tolist() == [0.0, 1.0, 1.0]
    assert Pooler(2)(maps, [torch.zeros(0, 4)] * 2, [(256, 256)] * 2).shape == (0, 1, 2, 2)


def test_crops_move_boxes_and_masks_with_the_pixels(scenes: Scenes) -> None:
    colours = dict(enumerate(shapes.COLOURS.values()))
    num_seen = 0
    for batch in batches(scenes):
        assert batch["images"].shape == (4, 3, 64, 64) and not batch["bad"]
        assert sum(batch["counts"]) == len(batch["boxes"]) == len(batch["labels"]) == len(batch["masks"])
        owners = np.repeat(np.arange(4), batch["counts"])
        for owner, box, label, mask in zip(owners, batch["boxes"], batch["labels"], batch["masks"], strict=True):
            left, top, right, bottom = (int(value) for value in box)
            assert (left, top, right, bottom) == tuple(box.tolist())  # of whole pixels, as the masks are
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            pixels = batch["images"][owner][:, mask.bool()].float()
            near = (pixels - torch.tensor(colours[int(label)])[:, None]).abs().amax(0) < 70
            assert near.float().mean() > 0.6  # its own colour, but for the edge
            num_seen += 1
    assert num_seen > 16
    again = list(batches(scenes, first_step=2))
    assert torch.equal(again[-1]["masks"], batch["masks"]) and torch.equal(again[-1]["images"], batch["images"])


def test_boxes_without_masks_are_those_of_the_masks(scenes: Scenes) -> None:
    boxes = open_scenes(str(Path(scenes.root or "").parent), masks=False).train
    jitter = Jitter(size=64, scale=(1.0, 1.0), flip=True, fill=FILL)
    for index in range(len(boxes)):
        for randoms in ([0.0, 0.0, 0.0, 0.9], [0.0, 0.0, 0.0, 0.1]):
            found, expected = (jittered(part, index, jitter, randoms) for part in (boxes, scenes))
            assert torch.equal(found["image"], expected["image"]) and "masks" not in found
            assert torch.equal(found["labels"], expected["labels"])
            assert torch.allclose(found["boxes"], expected["boxes"], atol=1.6)


def test_crowds_and_objects_outside_the_crop_are_left_out(scenes: Scenes) -> None:
    large = Jitter(size=16, scale=(4.0, 4.0), flip=False, fill=FILL)  # a corner of the picture in its own size
    found = jittered(scenes, 0, large, [0.0, 0.999, 0.0, 0.9])
    assert scenes.objects.crowds[list(scenes.objects_of(0))].sum() == 1  # along the lower edge
    assert found["image"].shape == (3, 16, 16) and not len(found["labels"])


def test_unusable_images_are_replaced_and_named(tmp_path: Path) -> None:
    data = shapes.draw_coco(tmp_path / "coco", counts=(4, 4))
    for part in ("train", "val"):
        content = shapes.read(data, part)
        content["images"][1]["width"] = 57
        content["annotations"][0]["segmentation"] = {"size": [48, 64], "counts": "a"}
        shapes.write(data, part, content)
    found = open_scenes(str(data))
    [batch] = batches(found.train, last_step=1)
    reasons = dict(batch["bad"])
    assert reasons == {
        str(data / "train2017/0.png"): "run lengths of an object that end in a number",
        str(data / "train2017/1.png"): "it has 56 x 64 pixels, and its annotations are for 57 x 64",
    }
    assert len(batch["images"]) == 4
    whole = list(load_whole(found.val, long_side=32))
    assert [bool(part["bad"]) for part in whole] == [True, True, False, False]
    assert whole[2]["image"].shape == (3, 24, 32) and whole[2]["size"] == (48, 64)
