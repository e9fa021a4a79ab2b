"""Masked image modeling: hide blocks of an image, encode the rest, predict features of the hidden blocks.

Shapes: B batch, C image channels, H x W image, s backbone stride, h = H/s and w = W/s, D backbone width,
P prefix tokens of the backbone (a ViT's class token), c target cell, k = s/c cells along a stride, K = target channels
per backbone position (9C k^2 for HOG).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from fastmim.backbone import Backbone
from fastmim.backbone.attention import choose_attention
from fastmim.backbone.initial import init_xavier
from fastmim.backbone.layers import parameter_groups
from fastmim.errors import RequestError
from fastmim.method.decoder import build_decoder
from fastmim.method.loss import masked_loss
from fastmim.method.masking import (
    check_block,
    default_block,
    expand,
    num_visible,
    paint,
    random_mask,
    visible_positions,
)
from fastmim.method.targets import HOG, TEACHER_ERRORS, Target
from fastmim.randomness import copy_keys


class MIM(nn.Module):
    """A backbone together with what pre-trains it: a mask, a target, a decoder and a loss.

    FastMIM paints hidden blocks over in the pixels and encodes every position ("in-place"); with "drop" the
    encoder of a plain ViT sees only the visible patches (MAE), a quarter of the tokens. With the arguments of
    `published` it is also MAE, SimMIM or MaskFeat, except that it paints the mask token of the latter two over
    pixels, not over embedded patches.

    Args:
        backbone: A timm model name, or a `Backbone`.
        img_size: Side of the (square) images in pixels; a multiple of the block.
        target: `HOG()` (the default), `Pixels()`, `RandomProjection()`, `Teacher(...)`, `Joint(...)` of these, or an
            object with the members of `targets.Target`.
        masking: "in-place" or "drop".
        mask_ratio: Share of the blocks to hide; 0 with a `Teacher` for plain distillation of every position.
        masks_per_image: Differently masked copies of each image in training (data2vec 2.0, arXiv 2212.07525). The
            target is computed once; in evaluation mode there is one.
        block: Side of a block in pixels; `masking.default_block` if None.
        decoder: (width, depth) of a transformer, "auto" or "linear".
        loss: "l2" (squared error) or "l1" (absolute error), for targets without an `error` of their own.
        encoder_depth: Share of the backbone's blocks to pre-train.
        pretrained: Start from timm's published weights.
        learn_positions: Train a plain ViT's position embedding, as belongs to weights that come with one of their own;
            otherwise it stays at sines and cosines, as in MAE and FastMIM. Off if None, unless `pretrained`.
        linear_init: Untrained linear layers of a ViT, Swin, PVTv2 or CMT: "xavier" as in MAE and FastMIM
            (`backbone.initial.init_xavier`), or "timm", which is also SimMIM's and MaskFeat's way.
        backbone_args: Arguments for timm.create_model.

    A `Backbone` is taken as it is; `pretrained` and what follows are for names.

    Raises:
        RequestError: The backbone is unknown or cannot take the size, the block does not fit, or tokens are to
            be dropped where the backbone or the decoder needs all of them.

    Example:
        >>> model = fastmim.MIM("vit_tiny_patch16_224", img_size=128, target=fastmim.HOG())
        >>> model(images)["loss"].backward()  # images: (B, 3, 128, 128), normalised
    """

    target: Target

    def __init__(
        self,
        backbone: str | Backbone,
        *,
        img_size: int = 128,
        target: Target | None = None,
        masking: Literal["in-place", "drop"] = "in-place",
        mask_ratio: float = 0.75,
        masks_per_image: int = 1,
        block: int | None = None,
        decoder: Literal["auto", "linear"] | tuple[int, int] = "auto",
        loss: Literal["l2", "l1"] = "l2",
        encoder_depth: float = 1.0,
        pretrained: bool = False,
        learn_positions: bool | None = None,
        linear_init: Literal["xavier", "timm"] = "xavier",
        backbone_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(backbone, str):
            backbone = Backbone(
                backbone, img_size=img_size, encoder_depth=encoder_depth, pretrained=pretrained, args=backbone_args
            )
            if linear_init == "xavier" and not pretrained:
                init_xavier(backbone.model)
            if not (pretrained if learn_positions is None else learn_positions):
                backbone.fix_positions()
        self.backbone = backbone
        self.mask_ratio = mask_ratio
        self.masks_per_image = masks_per_image
        self.block = block or default_block(backbone.stride, backbone.img_size)
        self._check_block()
        self._set_target(HOG() if target is None else target, loss)
        drops_tokens = masking == "drop"
        if drops_tokens:
            backbone.check_drops_tokens()
        # Where tokens are dropped, the decoder has a mask token of its own.
        self.mask_token = (
            None if drops_tokens else nn.Parameter(trunc_normal_(torch.empty(backbone.in_chans), std=0.02))
        )
        self.decoder = build_decoder(
            decoder,
            in_width=backbone.width,
            stride=backbone.stride,
            out_channels=sum(num_channels for num_channels, _ in self._parts),
            fills=drops_tokens,
        )
        choose_attention(self.decoder)

    def _set_target(self, target: Target, loss: str) -> None:
        """Fit a target to the backbone: its channels per position (K), and the error of each of its parts."""
        if not hasattr(target, "for_stride"):
            raise RequestError(f"target is {target!r}; expected an object such as fastmim.HOG() or fastmim.Pixels()")
        stride, in_chans = self.backbone.stride, self.backbone.in_chans
        self.target = target.for_stride(stride)
        self._cells_per_side = stride // self.target.cell  # k
        self._parts = [
            (part.num_channels(in_chans) * (stride // part.cell) ** 2, getattr(part, "error", loss))
            for part in getattr(self.target, "parts", (self.target,))
        ]
        if not self.mask_ratio and any(error not in TEACHER_ERRORS for _, error in self._parts):
            name = getattr(self.target, "name", type(self.target).__name__)
            raise RequestError(
                f"mask_ratio is 0 with target {name}; expected more than 0, such as 0.75: only a teacher's features "
                f"can be learned from the whole image"
            )

    def forward(self, images: Tensor, keys: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of predicting the hidden blocks (FastMIM equations 1 to 3).

        Args:
            images: (B, C, H, W) float, normalised.
            keys: (B,) int64 that decide the masks (`randomness.image_keys`); drawn at random if None.

        Returns:
            "loss": mean error over the hidden positions, float32 scalar; "prediction" and "target":
            (N, K, h, w), a position's k x k cells in the order of `pixel_unshuffle`; "mask": (N, h, w)
            bool, True = hidden. N is B; in training B * masks_per_image, an image's copies side by side.

        Raises:
            RequestError: the images have another shape or type; the message says what is wanted.
        """
        self._check_images(images)
        if keys is None:
            keys = torch.randint(2**62, (len(images),), device=images.device)
        target = F.pixel_unshuffle(self.target.forward(images), self._cells_per_side)  # (B, K, h, w)
        if self.training and (copies := self.masks_per_image) > 1:
            keys = copy_keys(keys, copies)
            images, target = images.repeat_interleave(copies, 0), target.repeat_interleave(copies, 0)
        H, W = images.shape[-2:]
        grid = H // self.backbone.stride, W // self.backbone.stride  # h, w
        blocks = random_mask(keys, (H // self.block, W // self.block), self.mask_ratio)
        mask = expand(blocks, grid)  # (B, h, w)
        if self.mask_token is None:  # the encoder sees only the visible positions (MAE)
            visible = visible_positions(mask, self.num_visible)  # (B, n)
            tokens, prefix = self.backbone.encode_visible(images, visible)  # (B, n, D), (B, P, D)
            prediction = self.decoder(tokens, prefix, visible, grid)  # (B, K, h, w)
        else:  # the encoder sees every position, hidden ones painted over (FastMIM)
            painted = paint(images, blocks, self.mask_token)
            features, prefix = self.backbone.encode(painted)  # (B, D, h, w), (B, P, D)
            prediction = self.decoder(features, prefix)  # (B, K, h, w)
        prediction = prediction.float()
        loss = self._loss(prediction, target, mask if self.mask_ratio else ~mask)
        if not self.training:
            prediction = self._scaled(prediction, target)
        return {"loss": loss, "prediction": prediction, "target": target, "mask": mask}

    def _loss(self, prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """The sum of the parts' errors, over the positions that count."""
        sizes, errors = zip(*self._parts, strict=True)
        pairs = zip(prediction.split(sizes, 1), target.split(sizes, 1), errors, strict=True)
        return torch.stack([masked_loss(ours, truth, counted, error=error) for ours, truth, error in pairs]).sum()

    def _scaled(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Predictions to be shown: a cosine leaves their lengths open, which are then the target's."""
        parts = []
        sizes, errors = zip(*self._parts, strict=True)
        for ours, truth, error in zip(prediction.split(sizes, 1), target.split(sizes, 1), errors, strict=True):
            scale = truth.norm(dim=1, keepdim=True) / ours.norm(dim=1, keepdim=True).clamp(min=1e-12)
            parts.append(ours * scale if error == "cosine" else ours)
        return torch.cat(parts, 1)

    def _check_images(self, images: Tensor) -> None:
        size, in_chans = self.backbone.img_size, self.backbone.in_chans
        wanted = f"expected floats (B, {in_chans}, {size}, {size})"
        if not isinstance(images, Tensor):
            raise RequestError(f"images is a {type(images).__name__}; {wanted}: make it a tensor")
        if images.dim() == 4 and images.shape[1:] == (in_chans, size, size) and images.is_floating_point():
            return
        found = f"images is {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}; {wanted}"
        if not images.is_floating_point():
            remedy = "divide pixels by 255, subtract the mean and divide by the deviation"
        elif images.dim() == 3:
            remedy = "add the batch dimension, images[None]"
        elif images.dim() != 4 or images.shape[1] != in_chans:
            remedy = "channels come second; repeat a grey image's, images.expand(-1, 3, -1, -1)"
        else:
            remedy = f"resize them, or call set_input_size({images.shape[-1]})"
        raise RequestError(f"{found}: {remedy}")

    @property
    def num_visible(self) -> int:
        """The number of an image's backbone positions that stay visible."""
        blocks = (self.backbone.img_size // self.block) ** 2
        return num_visible(blocks, self.mask_ratio) * (self.block // self.backbone.stride) ** 2

    def set_input_size(self, img_size: int) -> None:
        """Switch to another image size: position embeddings and windows follow, the block stays."""
        self.backbone.set_input_size(img_size)
        self._check_block()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are exempt from weight decay although they are not vectors."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def parameter_groups(self, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW, with an "lr_scale" for each layer of the backbone; the decoder's is 1.

        Raises:
            RequestError: timm cannot tell the backbone's layers apart.
        """
        network = self.backbone
        own = parameter_groups(network.model, network.name, weight_decay=weight_decay, layer_decay=layer_decay)
        inside = {parameter for group in own for parameter in group["params"]}
        rest = [p for p in self.parameters() if p.requires_grad and p not in inside]
        for decayed, decay in ((True, weight_decay), (False, 0.0)):
            params = [p for p in rest if (p.ndim > 1) is decayed]
            own.append({"params": params, "weight_decay": decay, "lr_scale": 1.0})
        return own

    def _check_block(self) -> None:
        size, stride = self.backbone.img_size, self.backbone.stride
        check_block(self.block, img_size=size, stride=stride, ratio=self.mask_ratio)
