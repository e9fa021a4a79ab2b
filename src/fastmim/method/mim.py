"""Masked image modeling: hide blocks of pixels, encode what is left, predict features of what was hidden.

Shapes: B batch, C image channels, H = W image side, s backbone stride, h = H/s, D backbone width,
c target cell, k = s/c cells along a stride, K = target channels per backbone position (9C k^2 for HOG).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from fastmim.backbone import Backbone
from fastmim.errors import RequestError
from fastmim.method.decoder import Decoder, FillingDecoder, LinearDecoder, decoder_size
from fastmim.method.masking import default_block, expand, num_visible, paint, random_mask, visible_positions
from fastmim.method.targets import HOG, Pixels

Target = HOG | Pixels

TARGETS: dict[str, Callable[[], Target]] = {"hog": HOG, "pixels": Pixels, "rgb": partial(Pixels, normalize=False)}
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"l2": torch.square, "l1": torch.abs}


class MIM(nn.Module):
    """A backbone with what pre-trains it: mask, target and decoder.

    FastMIM hides blocks in the pixels and keeps every position ("in-place"); with "drop" the encoder of a plain
    ViT sees the visible patches only (MAE), a quarter of the tokens. With the arguments of `recipes` it is also
    MAE, SimMIM or MaskFeat, except that the latter two paint their mask token over embedded patches, not pixels.

    Args:
        backbone: A timm model name, or a `Backbone`.
        img_size: Side of the (square) images in pixels; a multiple of the block.
        target: `HOG()` or `Pixels()`.
        masking: "in-place" or "drop".
        mask_ratio: Share of the blocks to hide.
        block: Side of a block in pixels; `masking.default_block` if None.
        decoder: (width, depth) of a transformer, "auto" or "linear".
        loss: "l2" (squared error) or "l1" (absolute error).
        encoder_depth: Share of the backbone's blocks to pre-train.
        pretrained: Start from timm's published weights.
        backbone_args: Arguments for timm.create_model.

    Raises:
        RequestError: an unknown backbone, a size it cannot take, a block that does not fit, tokens to drop where
            the backbone or the decoder cannot do without.
    """

    def __init__(
        self,
        backbone: str | Backbone,
        *,
        img_size: int = 128,
        target: Target | None = None,
        masking: Literal["in-place", "drop"] = "in-place",
        mask_ratio: float = 0.75,
        block: int | None = None,
        decoder: Literal["auto", "linear"] | tuple[int, int] = "auto",
        loss: Literal["l2", "l1"] = "l2",
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
        self.drops_tokens = masking == "drop"
        self.mask_ratio = mask_ratio
        self.block = block or default_block(backbone.stride, backbone.img_size)
        self._check_block()
        self.target = (target or HOG()).for_stride(backbone.stride)
        self.loss = loss
        # Where tokens are dropped, the decoder's own mask token stands for them.
        token = None if self.drops_tokens else nn.Parameter(trunc_normal_(torch.empty(backbone.in_chans), std=0.02))
        self.mask_token = token
        cells = (backbone.stride // self.target.cell) ** 2
        self.decoder = self._build_decoder(decoder, self.target.num_channels(backbone.in_chans) * cells)

    def _build_decoder(
        self, decoder: str | tuple[int, int], out_channels: int
    ) -> Decoder | FillingDecoder | LinearDecoder:
        width = self.backbone.width
        if decoder == "linear":
            if self.drops_tokens:
                raise RequestError(
                    "decoder is 'linear', which cannot fill in dropped tokens; expected a transformer such as 256x1, "
                    "or masking in-place"
                )
            return LinearDecoder(width, out_channels)
        size = decoder_size(width, self.backbone.stride) if isinstance(decoder, str) else decoder
        if self.drops_tokens:
            self.backbone.check_drops_tokens()
            return FillingDecoder(width, *size, out_channels)
        return Decoder(width, *size, out_channels)

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
        if num_visible((size // self.block) ** 2, self.mask_ratio) == 0:
            raise RequestError(
                f"mask_ratio is {self.mask_ratio}; with {(size // self.block) ** 2} blocks of {self.block} pixels "
                f"nothing stays visible: lower mask_ratio, or take a smaller block or a larger img_size"
            )

    @property
    def num_visible(self) -> int:
        """Backbone positions of an image that stay visible."""
        blocks = (self.backbone.img_size // self.block) ** 2
        return num_visible(blocks, self.mask_ratio) * (self.block // self.backbone.stride) ** 2

    def set_input_size(self, img_size: int) -> None:
        """Go on at another image size: position embeddings and windows follow, the block stays."""
        self.backbone.set_input_size(img_size)
        self._check_block()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed although they are not vectors."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

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
        blocks = random_mask(keys, images.shape[-1] // self.block, self.mask_ratio)
        mask = expand(blocks, self.backbone.grid)
        target = self._regroup(self.target(images))
        if isinstance(self.decoder, FillingDecoder):
            visible = visible_positions(mask, self.num_visible)
            tokens = self.backbone.encode_visible(images, visible)
            prediction = self.decoder.fill(tokens, visible, self.backbone.grid).float()
        else:
            painted = paint(images, blocks, self.mask_token)  # type: ignore[arg-type]
            prediction = self.decoder(self.backbone(painted)).float()
        return {
            "loss": masked_loss(prediction, target, mask, error=self.loss),
            "prediction": prediction,
            "target": target,
            "mask": mask,
        }

    def _regroup(self, cells: Tensor) -> Tensor:
        """(B, K/k^2, k h, k w) target cells -> (B, K, h, w), one column per backbone position."""
        return F.pixel_unshuffle(cells, self.backbone.stride // self.target.cell)


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor, *, error: str = "l2") -> Tensor:
    """Mean error over hidden positions and their channels.

    Args:
        prediction: (B, K, h, w).
        target: (B, K, h, w).
        mask: (B, h, w) bool, True = hidden; at least one.
        error: "l2" (squared) or "l1" (absolute).
    """
    errors = LOSSES[error](prediction - target).mean(dim=1)  # (B, h, w)
    return (errors * mask).sum() / mask.sum()
