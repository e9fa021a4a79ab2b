"""Tensor names of the original Swin, PVTv2 and CMT code, which FastMIM and SimMIM build on, as timm's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A regular expression that a name starts with, and what replaces it."""


@dataclass(frozen=True)
class Naming:
    """The names of one network's original code."""

    network: str
    mark: str
    """A tensor that no other code has under this name."""
    rules: tuple[Rule, ...]
    optional: tuple[str, ...] = ()
    """Prefixes, in timm's names, of layers that only pre-training or only fine-tuning has."""


def _stage(part: str, shift: int = -1) -> Callable[[re.Match[str]], str]:
    """Stage n of the name counted from 0 (`shift` -1: the code counts from 1), and its part."""
    return lambda match: f"stages.{int(match[1]) + shift}.{part}."


def _letter(part: str) -> Callable[[re.Match[str]], str]:
    """The stage that CMT's code calls a, b, c or d, and its part."""
    return lambda match: f"stages.{'abcd'.index(match[1])}.{part}"


_CMT_PARTS = {
    "proj": "local",
    "attn.q": "attn.query",
    "attn.k": "attn.key",
    "attn.v": "attn.value",
    "attn.sr": "attn.reduce",
    "mlp.conv1": "mlp.expand",
    "mlp.proj": "mlp.depthwise",
    "mlp.proj_bn": "mlp.norm.1",
    "mlp.conv2": "mlp.project",
}


def _cmt_block(match: re.Match[str]) -> str:
    return f"stages.{'abcd'.index(match[1])}.blocks.{match[2]}.{_CMT_PARTS.get(match[3], match[3])}."


NAMINGS = (
    Naming(
        "Swin Transformer",
        "layers.0.downsample.reduction.weight",  # the last layer of a stage; timm's first
        (
            (r"layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
            (r"fc_norm\.", "norm."),  # FastMIM's name in fine-tuning; it comes before the pooling all the same
            (r"head\.(?=weight$|bias$)", "head.fc."),
        ),
    ),
    Naming(
        "PVTv2",
        "patch_embed1.proj.weight",
        (
            (r"patch_embed1\.", "patch_embed."),
            (r"patch_embed(\d)\.", _stage("downsample")),
            (r"block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.mlp.dwconv."),
            (r"block(\d)\.", _stage("blocks")),
            (r"norm(\d)\.", _stage("norm")),
        ),
    ),
    Naming(
        "CMT",
        "patch_embed_a.proj.weight",
        (
            (r"stem_conv(\d)\.", lambda match: f"stem.{3 * int(match[1]) - 3}."),
            (r"stem_norm(\d)\.", lambda match: f"stem.{3 * int(match[1]) - 1}."),
            (r"patch_embed_([a-d])\.proj\.", _letter("downsample.0.")),
            (r"patch_embed_([a-d])\.norm\.", _letter("downsample.1.")),
            (r"relative_pos_([a-d])$", _letter("position_bias")),
            (r"blocks_([a-d])\.(\d+)\.((?:attn\.|mlp\.)?\w+)\.", _cmt_block),
            (r"_fc\.", "projection.0."),
            (r"_bn\.", "projection.1."),
        ),
        optional=("norm.", "projection."),
    ),
)


def naming_of(state: Mapping[str, Tensor], prefix: str = "") -> Naming | None:
    """The original code whose names a checkpoint's tensors have behind a prefix, or None for timm's names."""
    return next((naming for naming in NAMINGS if prefix + naming.mark in state), None)


def timm_name(name: str, naming: Naming) -> str:
    """timm's name for a tensor."""
    for pattern, replacement in naming.rules:
        if match := re.match(pattern, name):
            start = replacement if isinstance(replacement, str) else replacement(match)
            return start + name[match.end() :]
    return name
