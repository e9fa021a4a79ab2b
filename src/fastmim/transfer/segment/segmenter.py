"""The network of segmentation: a backbone of several maps, a head, and their loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.backbone.multiscale import MultiScale
from fastmim.backbone.pyramid import Pyramid, undamped
from fastmim.data import augment
from fastmim.data.colour_jitter import jitter_colours
from fastmim.data.label_images import IGNORED
from fastmim.randomness import uniform
from fastmim.transfer.segment.heads import FCNHead, LinearHead, UPerHead, enlarge

_FLIP_STREAM = 13


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The device's half of the augmentation: uint8 crops -> flipped, jittered and normalised ones."""

    mean: Tensor
    std: Tensor
    flip: bool
    jitter: bool

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Turn "images", "labels" and "keys" of `load_crops` into the arguments of `Segmenter.forward`."""
        images, labels, keys = batch["images"], batch["labels"], batch["keys"]
        if self.flip:
            flipped = uniform(keys, 1, stream=_FLIP_STREAM)[:, :, None] < 0.5  # (B, 1, 1)
            images = torch.where(flipped[:, None], images.flip(-1), images)
            labels = torch.where(flipped, labels.flip(-1), labels)
        if self.jitter:
            images = jitter_colours(images, keys)
        return {"images": augment.normalise(images, self.mean, self.std), "labels": labels}


class Segmenter(nn.Module):
    """Images of any height and width -> logits for each pixel; with labels, the loss.

    Args:
        trunk: The backbone.
        num_classes: C.
        head: "upernet" on the pyramid of the trunk's maps, everything trained; or "linear" on the maps themselves, the
            trunk frozen and in evaluation mode.
        channels: Of UPerNet.
        aux_weight: Weight of the auxiliary FCN head's loss; 0 for no such head.
    """

    def __init__(
        self,
        trunk: MultiScale,
        num_classes: int,
        *,
        head: str = "upernet",
        channels: int = 512,
        aux_weight: float = 0.4,
    ) -> None:
        super().__init__()
        self.frozen, self.aux_weight = head == "linear", aux_weight
        if self.frozen:
            self.maps: MultiScale | Pyramid = trunk.requires_grad_(False)
            self.head: LinearHead | UPerHead = LinearHead(trunk.widths, num_classes)
        else:
            self.maps = Pyramid(trunk)
            self.head = UPerHead(self.maps.widths, channels, num_classes)
        self.auxiliary = FCNHead(self.maps.widths, num_classes) if aux_weight and not self.frozen else None

    @property
    def trunk(self) -> MultiScale:
        """The backbone."""
        return self.maps.trunk if isinstance(self.maps, Pyramid) else self.maps

    def train(self, mode: bool = True) -> Segmenter:
        """As `nn.Module.train`; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.maps.eval()
        return self

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, C, h, w) logits at the stride of the finest map."""
        return self.head(self.maps(images))

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The mean over all pixels of the cross entropy, which is 0 where the label is `IGNORED`.

        Args:
            images: (B, 3, H, W), normalised.
            labels: (B, H, W) integers, 0 to C - 1 or `IGNORED`.

        Returns:
            "loss": float32 scalar.
        """
        maps = self.maps(images)
        loss = _cross_entropy(self.head(maps), labels)
        if self.auxiliary is not None:
            loss = loss + self.aux_weight * _cross_entropy(self.auxiliary(maps), labels)
        return {"loss": loss}

    def parameter_groups(self, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW; see `Pyramid.parameter_groups`."""
        heads: list[nn.Module] = [self.head, *([self.auxiliary] if self.auxiliary is not None else [])]
        groups = undamped(nn.ModuleList(heads), weight_decay=weight_decay)
        if isinstance(self.maps, Pyramid):
            groups = [*self.maps.parameter_groups(weight_decay=weight_decay, layer_decay=layer_decay), *groups]
        return groups


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    whole = enlarge(logits.float(), labels)
    return F.cross_entropy(whole, labels.long(), ignore_index=IGNORED, reduction="sum") / labels.numel()


def whole_logits(segmenter: Segmenter, image: Tensor) -> Tensor:
    """(3, H, W) normalised image -> (C, h, w) logits, from the image as a whole."""
    return segmenter.logits(image[None])[0].float()


def window_logits(segmenter: Segmenter, image: Tensor, *, size: int, stride: int) -> Tensor:
    """(3, H, W) normalised image -> (C, H, W) logits, averaged over overlapping windows.

    Windows start at multiples of `stride`; the last of a row or column ends with the image.
    """
    height, width = image.shape[-2:]
    total, counts = torch.zeros(0), torch.zeros(height, width, device=image.device)
    for top in _starts(height, size, stride):
        for left in _starts(width, size, stride):
            window = image[None, :, top : top + size, left : left + size]
            found = enlarge(segmenter.logits(window).float(), window)[0]
            if not len(total):
                total = torch.zeros(len(found), height, width, device=image.device)
            total[:, top : top + size, left : left + size] += found
            counts[top : top + size, left : left + size] += 1
    return total / counts


def _starts(length: int, size: int, stride: int) -> Sequence[int]:
    if length <= size:
        return [0]
    return [*range(0, length - size, stride), length - size]


def best_classes(logits: Tensor, sides: tuple[int, int]) -> Tensor:
    """(C, h, w) logits -> (H, W) int64, the most probable class of each pixel of a larger or smaller image.

    The logits are interpolated for a few classes at a time: 150 classes of a large photograph would fill gigabytes.
    """
    best: Tensor | None = None
    classes = torch.zeros(sides, dtype=torch.int64, device=logits.device)
    for first, part in enumerate(logits.split(1)):
        value = F.interpolate(part[None], sides, mode="bilinear", align_corners=False)[0, 0]
        if best is None:
            best = value
            continue
        higher = value > best
        best = torch.where(higher, value, best)
        classes.masked_fill_(higher, first)
    return classes
