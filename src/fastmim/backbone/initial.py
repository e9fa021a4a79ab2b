"""Initial values where the papers' differ from timm's: position embeddings of plain ViTs, linear layers."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fastmim.backbone.cmt import CMT


def sincos_table(grid: tuple[int, int], width: int, **placement: Any) -> Tensor:
    """MAE's 2-D sines and cosines (He et al., CVPR 2022, section 3), as its code orders them.

    The first width/2 channels encode the column, the others the row, each as width/4 sines followed by width/4 cosines
    of position * 10000^(-i / (width/4)).

    Args:
        grid: (h, w).
        width: Multiple of 4.
        placement: dtype and device.

    Returns:
        (h * w, width), positions in row-major order.
    """
    row_first = build_sincos2d_pos_embed(list(grid), width, interleave_sin_cos=True, **placement)
    return row_first.roll(width // 2, dims=1)


@torch.no_grad()
def init_sincos(model: nn.Module) -> bool:
    """Set a plain ViT's position embedding to `sincos_table`, its prefix tokens' rows to zeros.

    A plain ViT is a model with a learned `pos_embed` (1, prefix + h * w, D) over the h x w cells of
    `patch_embed.grid_size`. Other models are left unchanged.

    Returns:
        Whether the model is one.
    """
    table = getattr(model, "pos_embed", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if not isinstance(table, nn.Parameter) or table.ndim != 3 or table.shape[-1] % 4 or not grid:
        return False
    num_prefix = table.shape[1] - grid[0] * grid[1]
    if num_prefix not in (0, getattr(model, "num_prefix_tokens", 0)):
        return False
    table[:, :num_prefix] = 0
    table[:, num_prefix:] = sincos_table(grid, table.shape[-1], device=table.device)
    return True


@torch.no_grad()
def init_xavier(model: nn.Module) -> None:
    """Draw linear layers as MAE and FastMIM do: weights Xavier-uniform, biases zero.

    A ViT's patch embedding counts as a linear layer, and its class token is normal with a deviation of 0.02. timm
    draws all of them truncated normal with a deviation of 0.02 (ViT's class token: 1e-6); the deviation of Xavier is
    0.026 to 0.048 in ViT-B and Swin-B, and 0.044 to 0.125 in PVTv2-B2's queries. Models other than ViT, Swin, PVTv2 and
    CMT are left unchanged.
    """
    if not isinstance(model, VisionTransformer | SwinTransformer | PyramidVisionTransformerV2 | CMT):
        return
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if isinstance(model, VisionTransformer):
        projection = getattr(model.patch_embed, "proj", None)
        if isinstance(projection, nn.Conv2d):
            nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
        if model.cls_token is not None:
            nn.init.normal_(model.cls_token, std=0.02)
