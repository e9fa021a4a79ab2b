"""Copy-paste (Ghiasi et al., Simple Copy-Paste, CVPR 2021): objects of one training image pasted on another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

Crop = dict[str, Tensor]
"""What `crops.jittered` gives: "image", "boxes", "labels" and "masks"."""

_SHARE = 0.5  # of an image's objects that are pasted on another, on average


def pasted(crops: Sequence[Crop], randoms: Sequence[Sequence[float]]) -> list[Crop]:
    """Paste a random half of each image's objects on the image before it, and of the first's on the last.

    Objects below lose the pixels that are covered; their boxes are taken from what is left, and those of which nothing
    is left are dropped. Edges are not blended, which makes no difference (table 8 of the paper).

    Args:
        crops: Images of one size, with their objects; they are not changed.
        randoms: For each image at least as many numbers in [0, 1) as the one after it has objects.
    """
    return [
        _paste(crop, crops[(position + 1) % len(crops)], own)
        for position, (crop, own) in enumerate(zip(crops, randoms, strict=True))
    ]


def _paste(below: Crop, above: Crop, randoms: Sequence[float]) -> Crop:
    """An image with some objects of another."""
    num = len(above["labels"])
    chosen = torch.tensor(randoms[:num]) < _SHARE
    if above is below or not bool(chosen.any()):
        return below
    covered = above["masks"][chosen].amax(dim=0).bool()
    masks = below["masks"] * ~covered
    left = masks.bool().flatten(1).any(dim=1)
    joined = {name: torch.cat([below[name][left], above[name][chosen]]) for name in ("boxes", "labels")}
    joined["boxes"][: int(left.sum())] = masks_to_boxes(masks[left]) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # ends
    joined["masks"] = torch.cat([masks[left], above["masks"][chosen]])
    return joined | {"image": torch.where(covered, above["image"], below["image"])}
