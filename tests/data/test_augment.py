"""Crop boxes against torchvision's, and flip and normalisation as functions of the key."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms.functional import normalize

from fastmim.data.augment import (
    NUM_RANDOMS,
    center_box,
    crop_box,
    decode_center,
    decode_crop,
    denormalise,
    normalise,
    prepare,
)
from fastmim.randomness import image_keys, uniform
from pictures import encode, photograph, psnr

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
Range = tuple[float, float]


def random_rows(num: int) -> list[list[float]]:
    return uniform(image_keys(3, 0, torch.arange(num)), NUM_RANDOMS).tolist()


def statistics(boxes: Iterable[tuple[int, int, int, int]], height: int, width: int) -> list[list[float]]:
    """Area share, log aspect, and relative position of each (top, left, height, width)."""
    rows = [
        (h * w / (height * width), math.log(w / h), (t + 0.5) / (height - h + 1), (x + 0.5) / (width - w + 1))
        for t, x, h, w in boxes
    ]
    return [list(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("height", "width"), [(400, 600), (900, 300), (333, 333)])
@pytest.mark.parametrize(("scale", "ratio"), [((0.2, 1.0), (3 / 4, 4 / 3)), ((0.67, 1.0), (0.5, 2.0))])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: Range, ratio: Range) -> None:
    num = 4000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(num)]
    ours = [crop_box(height, width, row, scale=scale, ratio=ratio) for row in random_rows(num)]
    for a, b in zip(statistics(ours, height, width), statistics(theirs, height, width), strict=True):
        assert ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(1000, 10), (10, 1000), (3, 2), (1, 1), (90, 100)])
def test_if_no_draw_fits_the_box_is_torchvisions_central_one(height: int, width: int) -> None:
    image, scale, ratio = torch.empty(3, height, width), (4.0, 5.0), (3 / 4, 4 / 3)
    theirs = RandomResizedCrop.get_params(image, list(scale), list(ratio))
    assert crop_box(height, width, random_rows(1)[0], scale=scale, ratio=ratio) == theirs


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    randoms=st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=NUM_RANDOMS, max_size=NUM_RANDOMS),
)
def test_boxes_lie_inside(height: int, width: int, randoms: list[float]) -> None:
    for box in (crop_box(height, width, randoms), center_box(height, width, crop_pct=0.9)):
        assert box.top >= 0 and box.left >= 0 and box.height >= 1 and box.width >= 1
        assert box.top + box.height <= height and box.left + box.width <= width


def test_a_crop_is_a_function_of_its_numbers() -> None:
    data, (first, second) = encode(photograph()), random_rows(2)
    assert torch.equal(decode_crop(data, 64, first), decode_crop(data, 64, first))
    assert not torch.equal(decode_crop(data, 64, first), decode_crop(data, 64, second))
    whole = decode_crop(data, 64, first, scale=(1.0, 1.0), ratio=(1.5, 1.5))
    assert psnr(whole, photograph().resize((64, 64))) > 35


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_center_is_torchvisions_resize_and_center_crop(crop_pct: float) -> None:
    resize = Resize(round(112 / crop_pct), InterpolationMode.BICUBIC)
    theirs = CenterCrop(112)(resize(photograph()))
    assert psnr(decode_center(encode(photograph(), "PNG"), 112, crop_pct=crop_pct), theirs) > 38


def test_a_small_image_is_enlarged() -> None:
    small = photograph().resize((30, 20))
    assert psnr(decode_center(encode(small, "PNG"), 64), small.crop((5, 0, 25, 20)).resize((64, 64), 3)) > 40


def batch(num: int = 1000) -> dict[str, torch.Tensor]:
    images = torch.randint(0, 256, (num, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"images": images, "keys": image_keys(0, 0, torch.arange(num))}


def test_prepare_flips_half_by_key_and_normalises() -> None:
    given = batch()
    result = prepare(given | {"labels": torch.arange(1000), "bad": []}, MEAN, STD)
    assert set(result) == {"images", "keys", "labels"}
    assert result["images"].dtype == torch.float32
    plain = normalise(given["images"], MEAN, STD)
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(result["images"], plain, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(result["images"], plain, strict=True)])
    assert (flipped ^ kept).all()
    assert 440 < flipped.sum() < 560
    turned = {name: values.flip(0) for name, values in given.items()}  # other neighbours, same keys
    assert torch.equal(prepare(turned, MEAN, STD)["images"], result["images"].flip(0))
    other_epoch = given | {"keys": image_keys(0, 1, torch.arange(1000))}
    assert not torch.equal(prepare(other_epoch, MEAN, STD)["images"], result["images"])


def test_flips_are_independent_of_crops() -> None:
    keys = batch(20_000)["keys"]
    numbers = torch.cat([uniform(keys, NUM_RANDOMS, stream=0), uniform(keys, 1, stream=2)], dim=1)
    assert torch.corrcoef(numbers.T)[-1, :-1].abs().max() < 0.03


def test_prepare_compiles_whole() -> None:
    compiled = torch.compile(prepare, fullgraph=True, backend="eager")
    given = batch(8)
    assert torch.equal(compiled(given, MEAN, STD)["images"], prepare(given, MEAN, STD)["images"])


def test_normalise_is_torchvisions_and_denormalise_undoes_it() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 1, 1)
    ours = normalise(images, MEAN, STD)
    theirs = normalize(images / 255, MEAN.tolist(), STD.tolist())
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.equal(denormalise(ours, MEAN, STD), images)
    assert denormalise(torch.full((3, 1, 1), 99.0), MEAN, STD).flatten().tolist() == [255] * 3
