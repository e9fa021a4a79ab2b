"""Mixup, cutmix and random erasing: their distributions, and their dependence on keys alone."""

from __future__ import annotations

import pytest
import torch

from fastmim.data.mixing import Mix, erase
from fastmim.randomness import image_keys

NUM = 4096


def batch(num: int = NUM, size: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (image n is n in every pixel), labels in rotation, and keys."""
    numbers = torch.arange(num)
    return numbers.float()[:, None, None, None].expand(num, 3, size, size), numbers % 5, image_keys(0, 0, numbers)


def mixer(mixup: float = 0.0, cutmix: float = 0.0, smoothing: float = 0.0) -> Mix:
    return Mix(mixup=mixup, cutmix=cutmix, smoothing=smoothing, num_classes=5)


def test_nothing_is_mixed_when_both_are_off() -> None:
    images, labels, keys = batch()
    mixed, targets = mixer()(images, labels, keys)
    assert torch.equal(mixed, images)
    assert torch.equal(targets, torch.nn.functional.one_hot(labels, 5).float())


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    images, labels, keys = batch(4)
    _, targets = mixer(smoothing=0.1)(images, labels, keys)
    torch.testing.assert_close(targets[1], torch.tensor([0.02, 0.92, 0.02, 0.02, 0.02]))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_mixup_weights_are_beta_and_the_same_for_image_and_target(alpha: float) -> None:
    images, labels, keys = batch()
    mixed, targets = mixer(mixup=alpha)(images, labels, keys)
    partner = torch.arange(NUM) ^ 1
    weight = (mixed[:, 0, 0, 0] - partner) / (torch.arange(NUM) - partner)
    torch.testing.assert_close(targets[torch.arange(NUM), labels], weight, rtol=0, atol=2e-3)
    torch.testing.assert_close(targets.sum(1), torch.ones(NUM))
    assert torch.allclose(weight[0::2], weight[1::2], atol=2e-3)  # a pair's images keep the same share of themselves
    assert abs(weight.mean() - 0.5) < 0.03
    assert abs(weight[::2].var() / (1 / (4 * (2 * alpha + 1))) - 1) < 0.1  # Beta(a, a) has variance 1 / (4 (2a + 1))


def test_cutmix_targets_are_the_shares_of_the_pixels() -> None:
    images, labels, keys = batch(size=32)
    mixed, targets = mixer(cutmix=1.0)(images, labels, keys)
    own = (mixed == images).float().mean((1, 2, 3))
    torch.testing.assert_close(targets[torch.arange(NUM), labels], own)
    assert own.min() < 0.1 and own.max() > 0.97
    assert ((mixed == images) | (mixed == images[torch.arange(NUM) ^ 1])).all()


def test_each_applies_to_half_of_the_pairs() -> None:
    images, labels, keys = batch()
    mixed, _ = mixer(mixup=0.8, cutmix=1.0)(images, labels, keys)
    is_cut = ((mixed == images) | (mixed == images[torch.arange(NUM) ^ 1])).flatten(1).all(1)
    assert abs(is_cut.float().mean() - 0.5) < 0.04


def test_micro_batches_change_nothing_and_an_odd_last_image_is_unchanged() -> None:
    images, labels, keys = batch(21)
    mix = mixer(mixup=0.8, cutmix=1.0, smoothing=0.1)
    whole = mix(images, labels, keys)
    parts = [mix(images[part], labels[part], keys[part]) for part in (slice(0, 8), slice(8, 14), slice(14, 21))]
    for number in range(2):
        assert torch.equal(whole[number], torch.cat([part[number] for part in parts]))
    torch.testing.assert_close(whole[0][20], images[20])


@pytest.mark.parametrize("on_device", [False, True])
def test_erasing_hits_its_share_with_rectangles_of_noise(on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _, keys = batch(size=32)
    eager = (erase(images.clone(), keys, 0.25) != images).any(1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: on_device)
    erased = erase(images.clone(), keys, 0.25)
    changed = (erased != images).any(1)  # (B, H, W)
    hit = changed.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.03
    for shape in changed[hit][:50]:
        rows, columns = shape.any(1), shape.any(0)
        assert torch.equal(shape, rows[:, None] & columns[None])  # one rectangle
        assert 0.01 < shape.float().mean() < 0.36
    noise = (erased.permute(0, 2, 3, 1)[changed]).flatten()
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.equal(eager, changed)
    assert erase(images, keys, 0.0) is images


@pytest.mark.parametrize("size", [1, 2, 5])
def test_tiny_images(size: int) -> None:
    images, labels, keys = batch(64, size)
    assert erase(images.clone(), keys, 1.0).shape == images.shape
    mixed, targets = mixer(mixup=0.8, cutmix=1.0)(images, labels, keys)
    assert mixed.isfinite().all() and targets.isfinite().all()
