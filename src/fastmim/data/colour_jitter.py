"""Changes of brightness, contrast, saturation and hue on the device, as functions of the images' keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmim.randomness import uniform

_STREAM = 12
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32.0, 0.5, 0.5, math.radians(36)
# NTSC's luma and two axes of colour, in whose plane hue is an angle and saturation a length.
_LUMA = (0.299, 0.587, 0.114)
_YIQ = (_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def jitter_colours(images: Tensor, keys: Tensor) -> Tensor:
    """Change the colours of each image, by the ranges that are usual in segmentation (SSD, Liu et al., ECCV 2016).

    With a chance of one half each: brightness by up to 32 of 255, contrast and saturation by a factor of 0.5 to 1.5,
    hue by up to 36 degrees (18 of OpenCV's 180). All of them are one linear map of the colours, in YIQ instead of HSV.

    Args:
        images: (B, 3, H, W) uint8.
        keys: (B,) int64.

    Returns:
        (B, 3, H, W) float32, 0 to 255.
    """
    draws = uniform(keys, 8, stream=_STREAM).unbind(1)
    shift, contrast, saturation, hue = (
        torch.where(chance < 0.5, 2 * amount - 1, torch.zeros_like(amount))
        for chance, amount in zip(draws[:4], draws[4:], strict=True)
    )
    to_yiq = torch.tensor(_YIQ, device=images.device)  # (3, 3)
    zero, one = torch.zeros_like(hue), torch.ones_like(hue)
    strength, angle = 1 + _SATURATION * saturation, _HUE * hue
    cosine, sine = strength * angle.cos(), strength * angle.sin()
    rows = [torch.stack(row, dim=-1) for row in ((one, zero, zero), (zero, cosine, -sine), (zero, sine, cosine))]
    turned = torch.linalg.inv(to_yiq) @ torch.stack(rows, dim=1) @ to_yiq  # (B, 3, 3)
    matrices = (1 + _CONTRAST * contrast)[:, None, None] * turned
    changed = torch.einsum("bij,bjhw->bihw", matrices, images.float() + (_BRIGHTNESS * shift)[:, None, None, None])
    return changed.clamp(0, 255)
