"""Layers for layer-wise learning rates: timm's, but for Swin and PVTv2 those of FastMIM's code."""

from __future__ import annotations

from typing import Any

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.optim import param_groups_layer_decay
from torch import nn

from fastmim.errors import RequestError

_WITH_LAYER_BEFORE = 99999  # as the last number of a key, timm's sign that no new layer begins
_BEFORE_BLOCKS, _AFTER_BLOCKS = -1, 10**6


def parameter_groups(model: nn.Module, name: str, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """timm's parameter groups for AdamW: "lr_scale" is 1 for the classifier, times `layer_decay` per layer below.

    A layer is a block in every family of the recipes; timm itself counts PVTv2's four stages.

    Vectors (biases, norms) and the parameters that the model names (tokens, position embeddings, relative-position
    tables) get no weight decay.

    Args:
        model: A timm model.
        name: Its name, for messages.

    Raises:
        RequestError: `layer_decay` is below 1, and timm cannot tell the model's layers apart.
    """
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    published = _published(model)
    if published:
        model.group_matcher = lambda coarse=False: published  # type: ignore[assignment]
    groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay)
    if layer_decay < 1 and len({group["lr_scale"] for group in groups}) == 1:
        raise RequestError(
            f"layer_decay is {layer_decay:g}, and timm does not tell the layers of {name} apart; set it to 1"
        )
    return groups


def _published(model: nn.Module) -> dict[str, Any] | None:
    """The layers of Swin and PVTv2 as FastMIM's code counts them, in the form of timm's `group_matcher`.

    The step between two stages belongs to the block before it, and the final norm to the classifier.
    """
    if isinstance(model, SwinTransformer):
        step, block, norm = r"^layers\.(\d+)\.downsample", r"^layers\.(\d+)\.blocks\.(\d+)", None
    elif isinstance(model, PyramidVisionTransformerV2):
        last = len(model.stages) - 1
        step, block = r"^stages\.(\d+)\.downsample", r"^stages\.(\d+)\.blocks\.(\d+)"
        norm = rf"^stages\.(?!{last}\.)(\d+)\.norm"
    else:
        return None
    blocks = [(step, (_BEFORE_BLOCKS, _WITH_LAYER_BEFORE)), (block, None)]
    blocks += [(norm, (_AFTER_BLOCKS, _WITH_LAYER_BEFORE))] if norm else []
    return {"stem": r"^patch_embed", "blocks": blocks}
