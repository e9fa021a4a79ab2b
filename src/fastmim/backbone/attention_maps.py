"""The attention of a plain vision transformer, block by block, and how far it reaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastmim.errors import RequestError


def attention_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return what each block's tokens attend to.

    Args:
        model: A timm ViT in evaluation mode; it is not changed.
        images: (B, C, S, S), normalised.

    Returns:
        For each block (B, heads, T, T): row i is how token i weighs the others, and sums to 1. T counts the prefix
        tokens (class token, registers) first, then the patches in row-major order.

    Raises:
        RequestError: not every block attends to all tokens, as in Swin or a ConvNet.
    """
    found: list[Tensor] = []
    blocks: list[Any] = [
        module for module in model.modules() if hasattr(module, "fused_attn") and hasattr(module, "attn_drop")
    ]
    forms = [block.fused_attn for block in blocks]

    def take_plain(block: Any, _: Any) -> None:
        block.fused_attn = False  # the fused form never makes the weights

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].detach())

    hooks = [block.register_forward_pre_hook(take_plain) for block in blocks]
    # The weights after the softmax are what dropout is applied to.
    hooks += [block.attn_drop.register_forward_pre_hook(keep) for block in blocks]
    try:
        with torch.no_grad():
            model.forward_features(images)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
        for block, form in zip(blocks, forms, strict=True):
            block.fused_attn = form
    if len(found) != len(model.feature_info) or not all(_is_whole(weights, len(images)) for weights in found):  # type: ignore[arg-type]
        raise RequestError(
            f"{type(model).__name__} has no attention of all tokens to all tokens; expected a plain ViT, such as "
            f"vit_small_patch16_224: take --what features"
        )
    return found


def _is_whole(weights: Tensor, num_images: int) -> bool:
    """Whether these are an image's tokens among each other, and not those of a window."""
    return weights.dim() == 4 and len(weights) == num_images and weights.shape[2] == weights.shape[3]


def attention_distance(weights: Tensor, *, num_prefix: int, stride: int) -> float:
    """The mean distance between a patch and what it attends to (Dosovitskiy et al., arXiv 2010.11929, figure 7).

    Args:
        weights: (B, heads, T, T) of one block; the patches are a square grid.
        num_prefix: Prefix tokens, which are left out; the weights of the others are scaled to sum to 1.
        stride: Pixels along the side of a patch.

    Returns:
        Pixels, averaged over images, heads and patches.
    """
    patches = weights[:, :, num_prefix:, num_prefix:].double()
    patches = patches / patches.sum(-1, keepdim=True)
    side = round(patches.shape[-1] ** 0.5)
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double().to(patches.device)  # (N, 2)
    return float((patches * torch.cdist(places, places)).sum(-1).mean() * stride)
