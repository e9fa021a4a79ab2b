"""Masked image modeling: hide blocks of pixels, encode what is left, predict features of what was hidden.

Shapes: B batch, C image channels, H = W image side, s backbone stride, h = H/s, D backbone width,
c target cell, k = s/c cells along a stride, K = target channels per backbone position (9C k^2 for HOG).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from fastmim import masking
from fastmim.backbone import Backbone
from fastmim.config import RequestError
from fastmim.targets import HOG, Pixels

Target = HOG | Pixels

TARGETS: dict[str, type[Target]] = {"hog": HOG, "pixels": Pixels}


class Decoder(nn.Module):
    """A light transformer from backbone features to target channels (FastMIM section 3.3).

    Linear D -> width, `depth` pre-norm blocks with width/32 heads, LayerNorm, Linear width -> K. It needs
    no position embedding: hidden positions went through the backbone like all others.

    Args:
        in_width: D.
        width: Multiple of 32.
        depth: Number of blocks.
        out_channels: K.
    """

    def __init__(self, in_width: int, width: int, depth: int, out_channels: int) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        self.embed = nn.Linear(in_width, width)
        self.blocks = nn.Sequential(*(Block(width, num_heads=width // 32, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # Targets are small (a HOG bin is 0.26 on average): start near zero, not at unit variance.
        trunc_normal_(self.head.weight, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, K, h, w)."""
        h, w = features.shape[-2:]
        tokens = self.embed(features.flatten(2).transpose(1, 2))  # (B, h*w, width)
        tokens = self.head(self.norm(self.blocks(tokens)))  # (B, h*w, K)
        return tokens.transpose(1, 2).unflatten(2, (h, w))


def decoder_size(encoder_width: int, stride: int) -> tuple[int, int]:
    """(width, depth) of the decoder that matches an encoder.

    The paper's decoders are 256x1 for ViT-B (D 768, stride 16) and 256x4 for Swin-B, PVTv2-B2 and CMT-S
    (stride 32, a quarter of the positions), and it finds that a decoder should match the network's size
    (section 4.3). So: half the encoder's width in multiples of 32, between 64 and 256; one block below
    stride 32, four from there on.
    """
    width = max(64, min(256, encoder_width // 2 // 32 * 32))
    return width, 1 if stride < 32 else 4


class MIM(nn.Module):
    """A backbone with what pre-trains it: mask token, target and decoder.

    Args:
        backbone: A timm model name, or a `Backbone`.
        img_size: Side of the (square) images in pixels; a multiple of the block.
        target: `HOG()` or `Pixels()`.
        mask_ratio: Share of the blocks to hide.
        block: Side of a block in pixels; `masking.default_block` if None.
        decoder: (width, depth), or "auto".
        encoder_depth: Share of the backbone's blocks to pre-train.
        pretrained: Start from timm's published weights.
        backbone_args: Arguments for timm.create_model.

    Raises:
        RequestError: an unknown backbone, a size it cannot take, a block that does not fit.
    """

    def __init__(
        self,
        backbone: str | Backbone,
        *,
        img_size: int = 128,
        target: Target | None = None,
        mask_ratio: float = 0.75,
        block: int | None = None,
        decoder: str | tuple[int, int] = "auto",
        encoder_depth: float = 1.0,
        pretrained: bool = False,
        backbone_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(backbone, str):
            backbone = Backbone(
                backbone, img_size=img_size, encoder_depth=encoder_depth, pretrained=pretrained, args=backbone_args
            )
        self.backbone = backbone
        self.mask_ratio = mask_ratio
        self.block = block or masking.default_block(backbone.stride, backbone.img_size)
        self._check_block()
        self.target = (target or HOG()).for_stride(backbone.stride)
        self.mask_token = nn.Parameter(trunc_normal_(torch.empty(backbone.in_chans), std=0.02))
        cells = (backbone.stride // self.target.cell) ** 2
        width, depth = decoder_size(backbone.width, backbone.stride) if isinstance(decoder, str) else decoder
        self.decoder = Decoder(backbone.width, width, depth, self.target.num_channels(backbone.in_chans) * cells)

    def _check_block(self) -> None:
        size, stride = self.backbone.img_size, self.backbone.stride
        if size % self.block:
            low = size // self.block * self.block
            near = " or ".join(str(s) for s in (low, low + self.block) if s)
            raise RequestError(
                f"img_size is {size}; expected a multiple of the block of {self.block} pixels: "
                f"take {near}, or set block"
            )
        if self.block % stride:
            raise RequestError(
                f"block is {self.block}; expected a multiple of the backbone's stride of {stride} pixels"
            )
        if masking.num_visible((size // self.block) ** 2, self.mask_ratio) == 0:
            raise RequestError(
                f"mask_ratio is {self.mask_ratio}; with {(size // self.block) ** 2} blocks of {self.block} pixels "
                f"nothing stays visible: lower mask_ratio, or take a smaller block or a larger img_size"
            )

    def set_input_size(self, img_size: int) -> None:
        """Go on at another image size: position embeddings and windows follow, the block stays."""
        self.backbone.set_input_size(img_size)
        self._check_block()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed although they are not vectors."""
        return {"mask_token"} | {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def forward(self, images: Tensor, keys: Tensor | None = None) -> dict[str, Tensor]:
        """Loss of predicting the hidden blocks (FastMIM equations 1 to 3).

        Args:
            images: (B, C, H, W) float, normalised.
            keys: (B,) int64 that decide the masks (`randomness.image_keys`); drawn if None.

        Returns:
            "loss": mean squared error over the hidden cells, float32 scalar; "prediction" and "target":
            (B, K, h, w), a position's k x k cells in the order of `pixel_unshuffle`; "mask": (B, h, w)
            bool, True = hidden.
        """
        if keys is None:
            keys = torch.randint(2**62, (len(images),), device=images.device)
        blocks = masking.random_mask(keys, images.shape[-1] // self.block, self.mask_ratio)
        target = self._regroup(self.target(images))
        features = self.backbone(masking.paint(images, blocks, self.mask_token))
        prediction = self.decoder(features).float()
        mask = masking.expand(blocks, features.shape[-1])
        return {
            "loss": masked_mse(prediction, target, mask),
            "prediction": prediction,
            "target": target,
            "mask": mask,
        }

    def _regroup(self, cells: Tensor) -> Tensor:
        """(B, K/k^2, k h, k w) target cells -> (B, K, h, w), one column per backbone position."""
        return F.pixel_unshuffle(cells, self.backbone.stride // self.target.cell)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over hidden positions and their channels.

    Args:
        prediction: (B, K, h, w).
        target: (B, K, h, w).
        mask: (B, h, w) bool, True = hidden; at least one.
    """
    error = (prediction - target).square().mean(dim=1)  # (B, h, w)
    return (error * mask).sum() / mask.sum()
