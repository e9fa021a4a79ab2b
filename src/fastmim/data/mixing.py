"""Augmentation of labelled batches on the device: random erasing, mixup and cutmix, as functions of the keys."""

from __future__ import annotations

import math

import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional as F

from fastmim.randomness import uniform

_ERASE_STREAM, _MIX_STREAM = 8, 9
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
_QUANTILES = 4096


def erase(images: Tensor, keys: Tensor, share: float) -> Tensor:
    """Replace a random rectangle of some images with noise (random erasing, Zhong et al., arXiv 1708.04896).

    The rectangle has 2 to 33 % of the image's area and an aspect of 0.3 to 3.3, as in timm. The keys decide which
    images and where; the noise is drawn from the global generator, which the loop seeds at each step.

    Args:
        images: (B, C, H, W) normalised; on a CPU they are changed in place.
        keys: (B,) int64.
        share: Probability that an image is erased.

    Returns:
        (B, C, H, W).
    """
    if share == 0:
        return images
    height, width = images.shape[-2:]
    draws = uniform(keys, 5, stream=_ERASE_STREAM).unbind(1)  # 5 x (B,)
    area = height * width * (_ERASED_AREA[0] + draws[1] * (_ERASED_AREA[1] - _ERASED_AREA[0]))
    low, high = (math.log(aspect) / 2 for aspect in _ERASED_ASPECT)
    root = torch.exp(low + draws[2] * (high - low))  # of height / width
    tall = (area.sqrt() * root).round().clamp(1, height - 1)
    wide = (area.sqrt() / root).round().clamp(1, width - 1)
    top = (draws[3] * (height - tall + 1)).floor()
    left = (draws[4] * (width - wide + 1)).floor()
    hit = draws[0] < share
    if images.is_cpu and not torch.compiler.is_compiling():
        # On a CPU, fresh memory and unused noise take the time; a device would wait until it is told the boxes.
        boxes = torch.stack([top, left, tall, wide], 1)[hit].int().tolist()
        for index, (y, x, h, w) in zip(hit.nonzero()[:, 0].tolist(), boxes, strict=True):
            images[index, :, y : y + h, x : x + w] = torch.randn(images.shape[1], h, w, dtype=images.dtype)
        return images
    inside = _box(top, left, tall, wide, height, width) & hit[:, None, None, None]
    return torch.where(inside, torch.randn_like(images), images)


class Mix:
    """Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899), drawn for each pair of images.

    Neighbours in the batch form a pair: each is mixed with the other, with weights w and 1 - w. If both mixup and
    cutmix are on, each applies to half of the pairs. A pair's w, box and choice come from the key of its first
    image, so they do not depend on how a step is split into micro-batches with an even number of images.

    Args:
        mixup: Alpha of mixup's Beta(alpha, alpha) weights; 0 turns it off.
        cutmix: Alpha of cutmix's weights; 0 turns it off.
        smoothing: Label smoothing: this share of each target is spread over all classes.
        num_classes: The number of classes, K.
        device: The device of the batches.
    """

    def __init__(
        self, *, mixup: float, cutmix: float, smoothing: float, num_classes: int, device: torch.device | str = "cpu"
    ) -> None:
        self.smoothing, self.num_classes = smoothing, num_classes
        self._mixup, self._cutmix = (_beta_quantiles(alpha).to(device) if alpha else None for alpha in (mixup, cutmix))

    def __call__(self, images: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (B, C, H, W) normalised.
            labels: (B,) int64.
            keys: (B,) int64.

        Returns:
            Images (B, C, H, W) and targets (B, K), each row summing to 1.
        """
        targets = F.one_hot(labels, self.num_classes).to(images.dtype)
        targets = targets * (1 - self.smoothing) + self.smoothing / self.num_classes
        if self._mixup is None and self._cutmix is None:
            return images, targets
        place = torch.arange(len(images), device=images.device)
        partner = (place ^ 1).clamp(max=len(images) - 1)  # the last of an odd number is its own partner
        draws = uniform(keys[place & ~1], 4, stream=_MIX_STREAM)  # (B, 4), the same for both images of a pair
        if self._mixup is not None:
            weight = _lookup(self._mixup, draws[:, 0])
            pixels = weight[:, None, None, None]
        if self._cutmix is not None:
            cut, cut_weight = _cut(_lookup(self._cutmix, draws[:, 0]), draws[:, 1:3], *images.shape[-2:])
            if self._mixup is None:
                pixels, weight = cut, cut_weight
            else:
                is_cut = draws[:, 3] < 0.5
                pixels = torch.where(is_cut[:, None, None, None], cut, pixels)
                weight = torch.where(is_cut, cut_weight, weight)
        # One pass for both, in the memory of the partners.
        return images[partner].lerp_(images, pixels.to(images.dtype)), targets[partner].lerp(targets, weight[:, None])


def _cut(weight: Tensor, centre: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Cut out a box of 1 - weight of the area, clipped at the borders.

    Returns:
        The own image's share of each pixel, (B, 1, height, width) of 0 and 1, and of all pixels, (B,).
    """
    half = (1 - weight).sqrt() / 2
    y, x = (centre[:, 0] * height).floor(), (centre[:, 1] * width).floor()
    top, bottom = ((y - half * height).round().clamp(0, height), (y + half * height).round().clamp(0, height))
    left, right = ((x - half * width).round().clamp(0, width), (x + half * width).round().clamp(0, width))
    inside = _box(top, left, bottom - top, right - left, height, width)
    return 1 - inside.to(weight.dtype), 1 - (bottom - top) * (right - left) / (height * width)


def _box(top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, height: int, width: int) -> Tensor:
    """(B,) each -> (B, 1, height, width) bool, True inside."""
    rows = torch.arange(height, device=top.device)[None, :, None]  # (1, H, 1)
    columns = torch.arange(width, device=top.device)[None, None, :]
    top, left, tall, wide = (x[:, None, None] for x in (top, left, tall, wide))
    return ((rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide))[:, None]


def _beta_quantiles(alpha: float) -> Tensor:
    """The quantile function of Beta(alpha, alpha) at 0, 1/n, ..., 1."""
    return torch.from_numpy(betaincinv(alpha, alpha, torch.linspace(0, 1, _QUANTILES + 1).double().numpy())).float()


def _lookup(table: Tensor, uniforms: Tensor) -> Tensor:
    """Interpolate a quantile function: uniform numbers in [0, 1) -> numbers of its distribution."""
    position = uniforms * _QUANTILES
    below = position.long()
    return table[below].lerp(table[below + 1], position - below)
