"""The faster of two forms of attention, found by measurement: fused, or two matrix products and a softmax."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import use_fused_attn
from torch import Tensor, nn

# Measured on a Xeon with AMX (benchmarks/operations.py, benchmarks/records/operations-2026-11-26.json): on a CPU, the
# fused form's backward pass is slow for short sequences, and a bias that needs a gradient sends it to a slow general
# form. Forward passes alone are faster fused.
_PLAIN_UP_TO = {torch.bfloat16: 784 * 784, torch.float32: 128 * 128}
"""Pairs of a query and a key, per image and head, up to which training is faster without the fused form."""

_BIASES = ("relative_position", "rel_pos", "attention_bias")


def takes_plain(pairs: int, *, device: str, dtype: torch.dtype, biased: bool) -> bool:
    """Whether two matrix products and a softmax take less time than the fused form.

    Args:
        pairs: Queries times keys of an image.
        device: Type of the device.
        dtype: Of the queries.
        biased: Whether a learned bias is added to the attention's logits.
    """
    if device != "cpu":
        return False
    return torch.is_grad_enabled() and (biased or pairs <= _PLAIN_UP_TO.get(dtype, 0))


def choose_attention(model: nn.Module) -> None:
    """Let each attention of a timm model choose its form in every forward pass, by device, precision and length.

    A model under `torch.compile` keeps the form that it had: the fused one, unless it ran uncompiled before. Does
    nothing if fused attention is off for all of timm, by `timm.layers.set_fused_attn(False)` or TIMM_FUSED_ATTN=0.
    """
    if not use_fused_attn():
        return
    for module in model.modules():
        if hasattr(module, "fused_attn") and _choose not in module._forward_pre_hooks.values():
            module.fused_attn = True  # type: ignore[assignment]  # timm leaves it off in Swin, XCiT and Visformer
            module.register_forward_pre_hook(_choose)


def _choose(module: Any, inputs: tuple[Tensor, ...]) -> None:
    x = inputs[0]
    if x.device.type != "cpu" or x.dim() != 3 or torch.compiler.is_compiling():
        return
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    biased = any(name.startswith(_BIASES) for name, _ in module.named_parameters())
    reduction = getattr(module, "sr", None)  # the convolution by which PVTv2 reduces the keys
    pairs = x.shape[1] ** 2 // (math.prod(reduction.stride) if isinstance(reduction, nn.Conv2d) else 1)
    module.fused_attn = not takes_plain(pairs, device="cpu", dtype=dtype, biased=biased)
