"""Parts of Mask R-CNN where torchvision's guess strides, scales or precision; and necks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, roi_align

STRIDES = (4, 8, 16, 32, 64)
"""Of the maps on which boxes are proposed; regions are pooled from the first four."""
_USUAL_SIDE, _USUAL_LEVEL = 224, 2  # a region of this side is pooled from stride 16 (FPN, equation 1)
_RATIOS = (0.5, 1.0, 2.0)
_ANCHOR = 8  # side of a square anchor, in strides


class Neck(nn.Module):
    """Maps at strides 4, 8, 16 and 32 -> five maps of the same channels, the last at stride 64.

    Args:
        widths: Channels of the maps, finest first.
        channels: Of the results.
        top_down: Add coarser maps to finer ones (FPN, Lin et al., CVPR 2017); otherwise two convolutions for each map,
            as for the pyramid of one map in ViTDet.
    """

    def __init__(self, widths: Sequence[int], channels: int, *, top_down: bool) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(widths), channels, norm_layer=LayerNorm2d) if top_down else None
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for width in ([] if top_down else widths)
        )

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Four maps -> five, by their strides."""
        names = [str(stride) for stride in STRIDES]
        if self.fpn is not None:
            found = dict(self.fpn(dict(zip(names, maps, strict=False))))
        else:
            found = {n: layer(m) for n, m, layer in zip(names, maps, self.layers, strict=False)}
        found[names[4]] = F.max_pool2d(found[names[3]], 1, 2)
        return found


class Anchors(nn.Module):
    """Anchors at the strides of the maps, in float32; torchvision derives both from the maps."""

    num_per_place = len(_RATIOS)

    def __init__(self) -> None:
        super().__init__()
        self.generator = AnchorGenerator(tuple((_ANCHOR * s,) for s in STRIDES), (_RATIOS,) * len(STRIDES))

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """-> (number of anchors, 4) for each image: left, top, right, bottom in pixels."""
        device = maps[0].device
        self.generator.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in STRIDES]
        anchors = torch.cat(self.generator.grid_anchors([list(found.shape[-2:]) for found in maps], strides))
        return [anchors] * len(images.image_sizes)


class Pooler(nn.Module):
    """RoIAlign at the maps' own strides, with pixel centres at halves (He et al., Mask R-CNN, ICCV 2017)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        """Maps by stride and boxes of each image -> (number of boxes, C, side, side)."""
        numbers = torch.cat([found.new_full((len(found), 1), n) for n, found in enumerate(boxes)])
        joined = torch.cat(boxes)
        sides = ((joined[:, 2] - joined[:, 0]) * (joined[:, 3] - joined[:, 1])).clamp(min=0).sqrt()
        level = torch.floor(_USUAL_LEVEL + torch.log2(sides / _USUAL_SIDE + 1e-8)).clamp(0, 3)
        regions = torch.cat([numbers, joined], dim=1)
        strides = STRIDES[:4]
        pooled: Tensor | None = None
        for number, stride in enumerate(strides):
            chosen = torch.where(level == number)[0]
            found = roi_align(
                maps[str(stride)], regions[chosen].to(maps[str(stride)].dtype), self.side, 1 / stride, 0, aligned=True
            )
            if pooled is None:
                pooled = found.new_zeros(len(regions), *found.shape[1:])
            pooled = pooled.index_put((chosen,), found)
        assert pooled is not None
        return pooled


class Proposer(RPNHead):
    """torchvision's head of the region proposal network; float32 results, as boxes need more than 8 bits."""

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, boxes = super().forward(maps)
        return [found.float() for found in logits], [found.float() for found in boxes]


class BoxPredictor(FastRCNNPredictor):
    """torchvision's last layers of the box head, with float32 results."""

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes = super().forward(regions)
        return scores.float(), boxes.float()
