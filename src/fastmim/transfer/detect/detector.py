"""The network of detection: Mask R-CNN, of torchvision's parts, on the pyramid of any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from fastmim.backbone.multiscale import MultiScale
from fastmim.backbone.pyramid import Pyramid, undamped
from fastmim.transfer.detect.regions import STRIDES, Anchors, BoxPredictor, Neck, Pooler, Proposer

UNIT = STRIDES[-1]
"""Images are padded to multiples of this many pixels, so that every map has its stride."""
_NUM_CONVOLUTIONS = 4
_PROPOSALS = {"training": 2000, "testing": 1000}
_BOX_SIDE, _MASK_SIDE = 7, 14


class Detector(nn.Module):
    """Images of any height and width -> boxes, and masks; with targets, the loss.

    Faster R-CNN (Ren et al., 2015) and Mask R-CNN (He et al., 2017), with the longer heads of Wu and He (Group
    Normalization, 2018) and ViTDet (Li et al., 2022): two convolutions propose regions, four and a layer classify them,
    four find masks, all but the first with LayerNorm.

    Args:
        trunk: The backbone.
        num_classes: C, without the background.
        masks: Find masks besides boxes.
        channels: Of the neck and the heads; the layer before the classifier has four times as many.
        num_regions: Regions of each image that the heads are trained on.
    """

    def __init__(
        self, trunk: MultiScale, num_classes: int, *, masks: bool, channels: int = 256, num_regions: int = 512
    ) -> None:
        super().__init__()
        self.num_classes, self.masks = num_classes, masks
        self.pyramid = Pyramid(trunk)
        self.neck = Neck(self.pyramid.widths, channels, top_down=len(set(trunk.strides)) > 1)
        self.proposals = RegionProposalNetwork(
            Anchors(),
            Proposer(channels, Anchors.num_per_place, conv_depth=2),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=_PROPOSALS,
            post_nms_top_n={"training": 1000, "testing": 1000},
            nms_thresh=0.7,
        )
        wide = 4 * channels
        convolutions = [channels] * _NUM_CONVOLUTIONS
        box_head = FastRCNNConvFCHead((channels, _BOX_SIDE, _BOX_SIDE), convolutions, [wide], norm_layer=LayerNorm2d)
        mask_parts: dict[str, nn.Module] = {}
        if masks:
            mask_parts = {
                "mask_roi_pool": Pooler(_MASK_SIDE),
                "mask_head": MaskRCNNHeads(channels, convolutions, 1, norm_layer=LayerNorm2d),
                "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
            }
        self.heads = RoIHeads(
            Pooler(_BOX_SIDE),
            box_head,
            BoxPredictor(wide, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=num_regions,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            **mask_parts,
        )

    @property
    def trunk(self) -> MultiScale:
        """The backbone."""
        return self.pyramid.trunk

    def forward(
        self,
        images: Tensor,
        boxes: Tensor,
        labels: Tensor,
        counts: Sequence[int],
        masks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The sum of the losses of proposals, classes, boxes and masks.

        Args:
            images: (B, 3, H, W), normalised.
            boxes: (N, 4), those of all images: left, top, right, bottom in pixels.
            labels: (N,) int64, 0 to C - 1.
            counts: B numbers of boxes, whose sum is N.
            masks: (N, H, W) uint8 of 0 and 1; None without masks.

        Returns:
            "loss": float32 scalar; "proposal_loss", "class_loss", "box_loss" and "mask_loss".
        """
        sizes = list(counts)
        targets = [{"boxes": b, "labels": n + 1} for b, n in zip(boxes.split(sizes), labels.split(sizes), strict=True)]
        if masks is not None:
            for target, found in zip(targets, masks.split(sizes), strict=True):
                target["masks"] = found
        listed, maps = self._maps(images)
        regions, first = self.proposals(listed, maps, targets)
        _, second = self.heads(maps, regions, listed.image_sizes, targets)
        parts = {
            "proposal_loss": first["loss_objectness"] + first["loss_rpn_box_reg"],
            "class_loss": second["loss_classifier"],
            "box_loss": second["loss_box_reg"],
        } | ({"mask_loss": second["loss_mask"]} if self.masks else {})
        return {"loss": sum(parts.values(), start=images.new_zeros(())).float()} | parts

    def detect(self, image: Tensor) -> dict[str, Tensor]:
        """Find the objects of an image, in evaluation mode, the surest first: at most 100 of a score above 0.05.

        Args:
            image: (3, H, W), normalised.

        Returns:
            "boxes" (n, 4), "labels" (n,) from 0, "scores" (n,), and "masks" (n, 1, 28, 28), the probabilities within
            the boxes.
        """
        listed, maps = self._maps(image[None])
        regions, _ = self.proposals(listed, maps)
        [found], _ = self.heads(maps, regions, listed.image_sizes)
        return found | {"labels": found["labels"] - 1}

    def parameter_groups(self, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW; see `Pyramid.parameter_groups`."""
        own = nn.ModuleList([self.neck, self.proposals, self.heads])
        groups = self.pyramid.parameter_groups(weight_decay=weight_decay, layer_decay=layer_decay)
        return [*groups, *undamped(own, weight_decay=weight_decay)]

    def _maps(self, images: Tensor) -> tuple[ImageList, dict[str, Tensor]]:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % UNIT, 0, -height % UNIT))
        return ImageList(padded, [(height, width)] * len(images)), self.neck(self.pyramid(padded))
