"""A frozen encoder: a backbone and a pooling that turn images into one vector each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastmim.backbone import Backbone
from fastmim.data.augment import normalise
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError
from fastmim.training.evaluating import evaluating
from fastmim.training.world import ALONE, World
from fastmim.transfer.features.settings import FeatureConfig
from fastmim.weights import open_weights

Pool = Literal["avg", "cls", "both", "patches", "attention"]


def open_encoder(config: FeatureConfig, world: World = ALONE) -> tuple[Encoder, dict[str, Any]]:
    """The encoder that a config describes, on this process's device, and the facts (JSON types) about its weights.

    Raises:
        RequestError: no such weights, other weights than expected, or a size, block or pooling that they do not have.
        RunError: published weights cannot be loaded.
    """
    opened = open_weights(
        config.weights, backbone=config.backbone, backbone_args=config.backbone_args, from_checkpoint=True
    )
    facts = opened.identity()
    if opened.kind == "none":
        torch.manual_seed(config.seed)
        facts["seed"] = config.seed
    backbone = opened.load(config.img_size)
    encoder = Encoder(
        backbone.to(world.device(config.device)),
        pool=config.pool,
        block=config.block,
        mean=opened.mean,
        std=opened.std,
        crop_pct=opened.crop_pct,
        grey_range=opened.range,
    )
    return encoder.eval().requires_grad_(False), facts


class Encoder(nn.Module):
    """A backbone and a pooling: images -> one vector each. It shares the backbone's weights and never changes them.

    Args:
        backbone: Set to the size of the images.
        pool: "avg", the mean over the map; "cls", the class token; "both", the two concatenated; "patches", the
            features of all positions, row by row; "attention", how each head of a plain ViT lets the class token weigh
            these positions, head by head.
        block: Index of the block of a ViT or stage of a hierarchical backbone whose output to pool; negative from
            the end. Blocks that `encoder_depth` skips return their input, so -1 is the last trained one.
        mean: Per channel, for pixels in [0, 1].
        std: Likewise.
        crop_pct: Side of the evaluation crop as a share of an image's shorter side.
        grey_range: Of the images of more than 8 bits that the weights were trained on, as the setting `range` has it.

    Raises:
        RequestError: no such block, no class token, or attention that is not a plain ViT's.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        pool: Pool = "avg",
        block: int = -1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        crop_pct: float = 1.0,
        grey_range: str | None = None,
    ) -> None:
        super().__init__()
        num_maps = backbone.num_maps
        if not -num_maps <= block < num_maps:
            raise RequestError(
                f"block is {block}; expected {-num_maps} to {num_maps - 1}, as {backbone.name} has {num_maps} "
                f"blocks or stages: -1 is the last"
            )
        self.backbone, self.pool, self.block, self.crop_pct = backbone, pool, block % num_maps, crop_pct
        self.grey_range = grey_range
        device = next(backbone.parameters()).device
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, device=device))
        self.register_buffer("std", torch.tensor(std, device=device))
        size = backbone.img_size
        blank = torch.zeros(1, backbone.in_chans, size, size, device=device)
        with evaluating(self):
            feature_map, token = backbone.inner_map(blank, self.block)
        if pool in ("cls", "both", "attention") and token is None:
            raise RequestError(f"pool is {pool!r}, but {backbone.name} gives no class token; expected avg: --pool avg")
        height, width = feature_map.shape[2:]
        self.grid = height, width
        """Height and width of the map."""
        self.width: int = feature_map.shape[1] * {"both": 2, "patches": math.prod(self.grid)}.get(pool, 1)
        """Length of the vectors."""
        if pool == "attention":
            with evaluating(self):
                self.width = self._attention(blank).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8, S = `backbone.img_size` -> (B, `width`) float32."""
        images = normalise(images, self.mean, self.std)
        if self.pool == "attention":
            return self._attention(images)
        feature_map, token = self.backbone.inner_map(images, self.block)
        if self.pool == "patches":
            return feature_map.float().flatten(2).transpose(1, 2).flatten(1)  # (B, h * w * D)
        parts = []
        if self.pool != "cls":
            parts.append(feature_map.float().mean(dim=(2, 3)))
        if token is not None and self.pool != "avg":
            parts.append(token.float())
        return torch.cat(parts, dim=1)

    def _attention(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised -> (B, heads * h * w) float32, the class token's weights of the patches."""
        maps, num_prefix = self.backbone.attention_maps(images)
        weights = maps[min(self.block, len(maps) - 1)]  # (B, heads, T, T); blocks that are skipped have none
        return weights[:, :, 0, num_prefix:].float().flatten(1)
