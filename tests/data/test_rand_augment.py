"""RandAugment is a function of the key, the same in any process, and restores the global generators."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from fastmim.data.decode import decode_box
from fastmim.data.pixels import Box
from fastmim.data.rand_augment import RandAugment
from fastmim.errors import RequestError
from fastmim.randomness import step_seed
from pictures import encode, photograph

POLICY = "rand-m9-mstd0.5-inc1"


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return decode_box(encode(photograph()), 64, lambda height, width: Box(0, 0, height, width))


def test_only_the_key_decides(image: torch.Tensor) -> None:
    augment: RandAugment = RandAugment(POLICY, fill=(0.5, 0.5, 0.5))
    first = [augment(image, key) for key in range(20)]
    other: RandAugment = pickle.loads(pickle.dumps(augment))  # noqa: S301 - our own
    random.seed(5)
    np.random.seed(5)
    again = [other(image, key) for key in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(a.shape == (3, 64, 64) and a.dtype == torch.uint8 for a in first)
    changed = sum(not torch.equal(a, image) for a in first)
    assert changed >= 10
    assert len({a.numpy().tobytes() for a in first}) >= 10


@pytest.mark.parametrize("policy", [POLICY, "rand-m9-n3-tweights", "rand-m5-mstd101-t3aw"])
def test_timm_draws_the_same_from_the_global_generators(image: torch.Tensor, policy: str) -> None:
    options = {"translate_pct": 0.45, "img_mean": (128, 128, 128), "interpolation": Image.Resampling.BICUBIC}
    augment, timm = RandAugment(policy, fill=(0.5, 0.5, 0.5)), rand_augment_transform(policy, options)
    for key in range(20):
        random.seed(step_seed(key, 7))
        np.random.seed(step_seed(key, 7) & 0xFFFFFFFF)
        expected = np.array(timm(Image.fromarray(image.permute(1, 2, 0).numpy())))
        assert np.array_equal(augment(image, key).permute(1, 2, 0), expected)


def test_images_are_moved_by_bicubic_interpolation(monkeypatch: pytest.MonkeyPatch, image: torch.Tensor) -> None:
    drawn = []
    transform = Image.Image.transform

    def record(*args: Any, **kwargs: Any) -> Image.Image:
        drawn.append(kwargs.get("resample", args[-1]))
        return transform(*args, **kwargs)

    monkeypatch.setattr(Image.Image, "transform", record)
    augment = RandAugment("rand-m9-n3-p1", fill=(0.5, 0.5, 0.5))
    for key in range(20):
        augment(image, key)
    assert len(drawn) > 10 and set(drawn) == {Image.Resampling.BICUBIC}


def test_the_global_generators_are_restored(image: torch.Tensor) -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    RandAugment(POLICY, fill=(0.5, 0.5, 0.5))(image, 7)
    assert (random.random(), np.random.rand()) == expected


@pytest.mark.parametrize("policy", [POLICY, "rand-m10-n3-mstd0.5-inc1", "rand-m1-mstd101", "rand-m9"])
def test_pillow_accepts_every_level(image: torch.Tensor, policy: str) -> None:
    augment = RandAugment(policy, fill=(0.5, 0.5, 0.5))
    small = image[:, ::4, ::4].contiguous()
    for key in range(300):
        augment(small, key)


@pytest.mark.parametrize("policy", ["augmix-m3", "rand-x3", "9", "rand-m", "rand-mstdx"])
def test_other_policies_are_refused(policy: str) -> None:
    with pytest.raises(
        RequestError, match=r"randaugment is '.*'; expected a policy as timm writes it, such as rand-m9"
    ):
        RandAugment(policy, fill=(0.5, 0.5, 0.5))
