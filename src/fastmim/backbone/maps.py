"""Feature maps of a timm model: reading them, encoding visible tokens only, and fitting their grid to the image."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fastmim.backbone.patches import visible_patches
from fastmim.errors import RequestError


def last_map(model: nn.Module, images: Tensor, *, norm: bool) -> Tensor:
    """(B, C, S, S) images -> (B, D, h, h), the last of timm's intermediate maps.

    Args:
        model: Any timm model; all of them have `forward_intermediates` since 1.0.31.
        images: Normalised images.
        norm: Apply the final norm. Models that keep it in their classifier (Hiera) raise an error.
    """
    return _last(model, images, norm=norm)


def map_and_prefix(model: nn.Module, images: Tensor, *, norm: bool) -> tuple[Tensor, Tensor]:
    """`last_map`, and the prefix tokens (class token, registers) beside it.

    Args:
        model: A model for which `returns_prefix` holds.

    Returns:
        (B, D, h, h) and (B, P, D), with the norm likewise.
    """
    found = _last(model, images, norm=norm, return_prefix_tokens=True)
    return (found, no_tokens(found)) if isinstance(found, Tensor) else found


def returns_prefix(model: nn.Module) -> bool:
    """Whether timm returns the model's prefix tokens beside its maps; it fails on a ViT without any."""
    has_prefix = getattr(model, "num_prefix_tokens", 1) > 0
    return has_prefix and "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters  # type: ignore[arg-type]


def no_tokens(features: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, 0, D): the prefix tokens of a model that has none."""
    return features.flatten(2).transpose(1, 2)[:, :0]


def _last(model: nn.Module, images: Tensor, **options: Any) -> Any:
    intermediates: Any = model.forward_intermediates
    return intermediates(images, indices=1, output_fmt="NCHW", intermediates_only=True, **options)[-1]


def inner_map(model: nn.Module, images: Tensor, block: int, *, norm: bool) -> tuple[Tensor, Tensor | None]:
    """The map after a given block, and the class token at that depth if timm returns one.

    Args:
        model: Any timm model.
        images: (B, C, S, S), normalised.
        block: Index into `feature_info`: a block of a ViT, a stage of a hierarchical model.
        norm: As in `last_map`. ViTs apply it after any block, hierarchical models after the last stage only.

    Returns:
        (B, D, h, h), and (B, D) or None.
    """
    intermediates: Any = model.forward_intermediates
    prefix = {"return_prefix_tokens": True} if returns_prefix(model) else {}
    [found] = intermediates(
        images, indices=[block], norm=norm, stop_early=True, output_fmt="NCHW", intermediates_only=True, **prefix
    )
    if isinstance(found, Tensor):
        return found, None
    # The class token comes before the registers; a model may have registers only.
    return found[0], found[1][:, 0] if getattr(model, "cls_token", None) is not None else None


def inner_maps(model: nn.Module, images: Tensor, *, norm: bool) -> list[Tensor]:
    """The maps after every block, see `inner_map`, in one pass."""
    intermediates: Any = model.forward_intermediates
    return list(intermediates(images, norm=norm, output_fmt="NCHW", intermediates_only=True))


def drops_tokens(model: nn.Module) -> bool:
    """Whether `visible_tokens` works on the model: a plain ViT with position embeddings and disjoint patches."""
    if not isinstance(model, VisionTransformer) or model.pos_embed is None or model.pos_drop.p:
        return False
    return isinstance(model.patch_embed, PatchEmbed)  # a convolutional stem would see across patches


def visible_tokens(model: nn.Module, images: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Encode the visible patches only, as if there were no others (MAE, He et al., CVPR 2022, section 3).

    Args:
        model: A model for which `drops_tokens` holds.
        images: (B, C, S, S), normalised.
        visible: (B, n) int64, the patches' positions in row-major order.

    Returns:
        (B, n, D) and the prefix tokens (class token, registers), (B, P, D), both with the final norm.
    """
    vit: Any = model
    patches = vit.patch_embed.norm(visible_patches(vit.patch_embed.proj, images, visible))  # (B, n, D)
    # timm adds the positions to the patches, so it shows them where all patches are 0.
    h, w = (side // patch for side, patch in zip(images.shape[2:], vit.patch_embed.patch_size, strict=True))
    zeros = patches.new_zeros((1, h, w, vit.embed_dim) if vit.dynamic_img_size else (1, h * w, vit.embed_dim))
    positions = vit._pos_embed(zeros)  # (1, prefix + N, D)
    prefix, positions = positions.split([vit.num_prefix_tokens, h * w], dim=1)
    patches = patches + positions[0][visible]
    tokens = vit.norm_pre(torch.cat([prefix.expand(len(images), -1, -1), patches], dim=1))
    for block in vit.blocks:
        tokens = block(tokens)
    tokens = vit.norm(tokens)
    return tokens[:, vit.num_prefix_tokens :], tokens[:, : vit.num_prefix_tokens]


def resample(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size) over the same extent, by bilinear antialiased interpolation.

    Args:
        x: The maps or images.
        size: Height and width, or the side of a square.
    """
    sides = (size, size) if isinstance(size, int) else size
    if x.shape[-2:] == sides:
        return x
    # In float32: not every device can interpolate bfloat16.
    resampled = F.interpolate(x.float(), sides, mode="bilinear", antialias=True, align_corners=False)
    return resampled.to(x.dtype)


def nearest_grid(img_size: int, side: float, *, own: bool = False) -> int:
    """The grid size closest to a map of `side` cells whose cells are whole HOG cells.

    A map that divides the image with a stride below 8 keeps its own size; otherwise the stride must be a multiple of 8.

    Args:
        own: Take the map's own grid (37 x 37 at 518 px, a stride of 14) if no other divides the image.

    Raises:
        RequestError: no such grid lies within a factor of two.
    """
    divisors = [s for s in range(1, img_size + 1) if img_size % s == 0]
    grids = [img_size // s for s in divisors if s % 8 == 0 or (s < 8 and s * side == img_size)]
    grid = min(grids, key=lambda grid: abs(math.log(grid / side)), default=0)
    if side / 2 <= grid <= side * 2:
        return grid
    if own and img_size % side == 0:
        return int(side)
    low = img_size // 32 * 32
    raise RequestError(
        f"img_size is {img_size}; expected whole HOG cells of 8 pixels under the backbone's map of about "
        f"{side:.0f} x {side:.0f}: take {' or '.join(str(size) for size in (low, low + 32) if size)}"
    )
