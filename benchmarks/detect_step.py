"""A training step of `fastmim detect` against torchvision's own Mask R-CNN on timm's plain feature extractor.

    OMP_NUM_THREADS=1 python benchmarks/detect_step.py

Both have the same backbone, feature pyramid, heads and number of regions, see the same images and objects, in float32,
and step AdamW. Their proposals are computed and then replaced by the same boxes, or one network, as it happened to
start, would have more masks to learn than the other. The sides take turns; CPU time. What the pyramid itself takes is
measured forward and backward on maps that the backbone gave before.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from fastmim.backbone.multiscale import MultiScale
from fastmim.backbone.pyramid import Pyramid
from fastmim.bench import records
from fastmim.bench.timing import ratios, take_turns
from fastmim.transfer.detect.detector import Detector

CLASSES, OBJECTS, CHANNELS, REGIONS = 80, 7, 256, 512
LEVELS = 5


class Extractor(nn.Module):
    """timm's maps of a Swin, through torchvision's feature pyramid."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, img_size=size)
        widths = self.body.feature_info.channels()
        self.neck = FeaturePyramidNetwork(widths, CHANNELS, LastLevelMaxPool(), norm_layer=LayerNorm2d)
        self.out_channels = CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = {str(number): found.permute(0, 3, 1, 2) for number, found in enumerate(self.body(images))}
        return dict(self.neck(maps))


def plain(name: str, size: int) -> MaskRCNN:
    """torchvision's Mask R-CNN with the heads of `Detector`."""
    wide, layers = 4 * CHANNELS, [CHANNELS] * 4
    return MaskRCNN(
        Extractor(name, size),
        min_size=size,
        max_size=size,
        rpn_anchor_generator=AnchorGenerator(
            tuple((8 * 4 * 2**n,) for n in range(LEVELS)), ((0.5, 1.0, 2.0),) * LEVELS
        ),
        rpn_head=RPNHead(CHANNELS, 3, conv_depth=2),
        rpn_post_nms_top_n_train=1000,
        box_head=FastRCNNConvFCHead((CHANNELS, 7, 7), layers, [wide], norm_layer=LayerNorm2d),
        box_predictor=FastRCNNPredictor(wide, CLASSES + 1),
        mask_head=MaskRCNNHeads(CHANNELS, layers, 1, norm_layer=LayerNorm2d),
        mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES + 1),
        box_batch_size_per_image=REGIONS,
    )


def scenes(batch_size: int, size: int) -> dict[str, Any]:
    """Images of noise with boxes and masks, as `Detector` takes them."""
    corners = torch.rand(batch_size * OBJECTS, 2) * size * 0.6
    boxes = torch.cat([corners, corners + size * (0.08 + 0.3 * torch.rand_like(corners))], 1).clamp(max=size)
    masks = torch.zeros(len(boxes), size, size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.randint(0, CLASSES, (len(boxes),))
    images = torch.randn(batch_size, 3, size, size)
    return {"images": images, "boxes": boxes, "labels": labels, "counts": [OBJECTS] * batch_size, "masks": masks}


def targets(batch: dict[str, Any]) -> list[dict[str, Tensor]]:
    """The same objects, as torchvision takes them."""
    parts = zip(*(batch[name].split(batch["counts"]) for name in ("boxes", "labels", "masks")), strict=True)
    return [{"boxes": boxes, "labels": labels + 1, "masks": masks} for boxes, labels, masks in parts]


def with_regions(proposer: RegionProposalNetwork, regions: list[Tensor]) -> None:
    """Let it propose these boxes in each image, after it has chosen its own."""
    choose = proposer.filter_proposals

    def chosen(*arguments: Any) -> tuple[list[Tensor], list[Tensor]]:
        _, scores = choose(*arguments)
        return regions, scores

    proposer.filter_proposals = chosen


def around(batch: dict[str, Any], size: int, *, num: int = 1000) -> list[Tensor]:
    """Boxes of each image: the objects moved a little, which makes some of them positive, and chance ones."""
    found = []
    for boxes in batch["boxes"].split(batch["counts"]):
        near = boxes.repeat(8, 1)
        sides = (near[:, 2:] - near[:, :2]).repeat(1, 2)
        near = near + sides * (torch.rand_like(near) - 0.5) * 0.4
        corners = torch.rand(num - len(near), 2) * size * 0.8
        far = torch.cat([corners, corners + 8 + torch.rand_like(corners) * size * 0.3], 1)
        found.append(torch.cat([near, far]).clamp(0, size))
    return found


def stepper(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
    """One step of training."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def on_maps(pyramid: Pyramid, images: Tensor) -> Callable[[], Tensor]:
    """The pyramid's levels on maps that the backbone gave before."""
    with torch.no_grad():
        maps = pyramid.trunk(images)
    maps = [found.requires_grad_() for found in maps]
    pyramid.trunk.forward = lambda _: maps
    return lambda: torch.stack([found.sum() for found in pyramid(images)]).sum()


def passes(loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward."""
    return lambda: loss().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="swin_tiny_patch4_window7_224", help="a Swin")
    parser.add_argument("--img-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    name, size = options.backbone, options.img_size
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = scenes(options.batch_size, size)
    listed, wanted = list(batch["images"]), targets(batch)
    ours = Detector(MultiScale(name, img_size=size), CLASSES, masks=True, channels=CHANNELS, num_regions=REGIONS)
    theirs = plain(name, size)
    regions = around(batch, size)
    with_regions(ours.proposals, regions)
    with_regions(theirs.rpn, regions)
    pyramid = Pyramid(MultiScale(name, img_size=size))
    sides = {
        "fastmim": stepper(ours, lambda model: model(**batch)["loss"]),
        "torchvision": stepper(theirs, lambda model: sum(model(listed, wanted).values())),
        "pyramid alone": passes(on_maps(pyramid, batch["images"])),
    }
    seconds = take_turns(sides, rounds=options.rounds).cpu
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    share = medians["pyramid alone"] / medians["fastmim"]
    records.write(
        Path(__file__).parent / "records",
        "detect-step",
        show=True,
        claim="A step of detect takes at most 1.05 times that of torchvision's Mask R-CNN on timm's feature extractor.",
        config=vars(options) | {"classes": CLASSES, "objects": OBJECTS, "channels": CHANNELS, "regions": REGIONS},
        raw=seconds,
        summary={
            "seconds_per_step": medians,
            "fastmim_over_torchvision": ratios(seconds, baseline="fastmim", side="torchvision"),
            "share_of_pyramid": share,
        },
    )


if __name__ == "__main__":
    main()
