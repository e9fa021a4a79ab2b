"""Checkpoints of other projects: their tensor names, and the timm model that their tensors belong to.

The names follow the published code of FastMIM (ggjy/FastMIM.pytorch), MAE (facebookresearch/mae), SimMIM
(microsoft/SimMIM) and the original Swin Transformer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
from timm.models import get_model_input_config
from torch import Tensor

from fastmim.backbone import published_input
from fastmim.backbone.architecture import Architecture
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError

State = Mapping[str, Tensor]

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_COMPUTED = ("relative_position_index", "attn_mask")  # buffers of Swin and BEiT that depend on the sizes alone
_SWIN_TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
_SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}
_DECODER = ("mask_token", "decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")
_HEADS = (
    "FastMIM pre-trains its ViT-B with 6 heads, where timm's and its own fine-tuning code have 12 in the same shapes: "
    "the file says num_heads 6, and loading it with 12 is refused"
)


@dataclass(frozen=True)
class Layout:
    """The tensor names of one project's checkpoints."""

    method: str
    """"FastMIM", "MAE", "SimMIM" or "timm"."""
    prefix: str = ""
    """Prefix of the backbone's tensors."""
    other: tuple[str, ...] = ()
    """Prefixes of the method's own tensors (decoder, mask token)."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments with which timm makes the same network."""
    note: str = ""
    """A note for the user."""


@dataclass(frozen=True)
class TimmModel:
    """The timm model that a checkpoint's backbone is an instance of."""

    name: str
    arguments: dict[str, Any]
    img_size: int
    """Side in pixels of the images that the tensors are for."""
    native_size: int
    """timm's default for the model."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str
    """A note for the user, or empty."""


def recognise(state: State) -> Layout:
    """The layout of a checkpoint, recognised by its tensor names; timm's if it is no other."""
    token = state.get("mask_token")
    if token is not None and token.ndim == 4:  # painted over pixels: (1, C, 1, 1)
        if any(name.startswith("encoder.") for name in state):
            return Layout("FastMIM", "encoder.", _DECODER)
        return Layout("FastMIM", "", _DECODER, {"num_heads": 6}, _HEADS)
    if "encoder.mask_token" in state:
        arguments: dict[str, Any] = {}
        if f"encoder.{_SHARED_TABLE}" in state:
            # SimMIM's ViT is timm's BEiT with one table of position biases for all blocks and the norm before pooling.
            arguments = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False}
        return Layout("SimMIM", "encoder.", ("encoder.mask_token", "decoder.0."), arguments)
    if "decoder_pos_embed" in state:
        return Layout("MAE", "", _DECODER)
    return Layout("timm")


def split(state: State, layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors under timm's names, and the names of all other known tensors.

    Unknown tensors count as the backbone's, so that they are refused later as not fitting the model.
    """
    backbone, dropped = {}, []
    for name, tensor in state.items():
        if name.startswith(layout.other or ("\0",)) or name.endswith(_COMPUTED):
            dropped.append(name)
        else:
            backbone[name.removeprefix(layout.prefix)] = tensor
    if "layers.0.downsample.reduction.weight" in backbone:  # the last layer of a stage; timm's first
        moved = re.compile(r"^layers\.(\d+)\.downsample\.")
        backbone = {moved.sub(lambda m: f"layers.{int(m[1]) + 1}.downsample.", k): v for k, v in backbone.items()}
    return backbone, dropped


def identify(
    backbone: State, state: State, layout: Layout, *, name: str | None, arguments: Mapping[str, Any]
) -> TimmModel:
    """Identify the timm model and the image size that the tensors are for.

    Args:
        backbone: The backbone's tensors under timm's names.
        state: The whole checkpoint.
        layout: Its layout.
        name: The architecture; inferred from the tensors if None.
        arguments: Its further arguments.

    Raises:
        RequestError: no name is given, and the tensors are not of a known ViT or Swin.
    """
    name = name or _name(backbone)
    given = layout.arguments | dict(arguments)
    architecture = Architecture(name, given)
    native: int = get_model_input_config(architecture.bare)["input_size"][-1]
    size, window = native, None
    if _SWIN_TABLE in backbone:
        size, window = _swin_size(backbone, state)
        if "window_size" not in given and (size, backbone[_SWIN_TABLE].shape) != (
            native,
            architecture.bare.state_dict()[_SWIN_TABLE].shape,
        ):
            given["window_size"] = window
    elif _SHARED_TABLE in backbone:
        # (2 g - 1)^2 offsets and three rows for the class token, g being the side of the grid
        size = (math.isqrt(len(backbone[_SHARED_TABLE]) - 3) + 1) // 2 * _patch(backbone)
    elif "pos_embed" in backbone and "patch_embed.proj.weight" in backbone and backbone["pos_embed"].ndim == 3:
        patch = _patch(backbone)
        own = architecture.bare.state_dict().get("pos_embed")
        prefix = own.shape[1] - (native // patch) ** 2 if own is not None else 0
        size = math.isqrt(max(0, backbone["pos_embed"].shape[1] - prefix)) * patch
    mean, std, note = _normalisation(name, layout)
    return TimmModel(name, given, size, native, mean, std, note)


def _normalisation(name: str, layout: Layout) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean and deviation of the images that a checkpoint was trained on, and a note where they are assumed.

    FastMIM, MAE and SimMIM use ImageNet's. So do bare encoders and fine-tuned models of theirs, whose tensors have
    timm's names: only a tag says that the weights are timm's own, which for most ViTs have 0.5 and 0.5.
    """
    imagenet = (tuple(IMAGENET_MEAN), tuple(IMAGENET_STD))
    if layout.method != "timm":
        return *imagenet, ""
    _, mean, std, _ = published_input(name)
    if "." in name or (mean, std) == imagenet:
        return mean, std, ""
    tag = next(iter(timm.list_pretrained(f"{name}.*")), name)
    return *imagenet, (
        f"the file does not say how its images were normalised: ImageNet's mean and deviation are recorded; if it "
        f"holds timm's own weights, name them by their tag, such as --backbone {tag}"
    )


def _name(backbone: State) -> str:
    """timm's name for a backbone of these widths and depths."""
    name = ""
    if "patch_embed.proj.weight" in backbone:
        width, patch = len(backbone["patch_embed.proj.weight"]), _patch(backbone)
        if _SWIN_TABLE in backbone:
            third = _num_blocks(key.removeprefix("layers.2.") for key in backbone if key.startswith("layers.2."))
            name = f"swin_{_SWINS.get((width, third))}_patch{patch}_window7_224"
        else:
            family = "beit" if _SHARED_TABLE in backbone else "vit"
            name = f"{family}_{_VITS.get((width, _num_blocks(backbone)))}_patch{patch}_224"
    if name not in timm.list_models():
        raise RequestError(
            f"the checkpoint's backbone ({', '.join(list(backbone)[:3])} and so on) is no ViT or Swin of a known size; "
            f"expected its timm name: --backbone NAME"
        )
    return name


def _num_blocks(names: Any) -> int:
    return 1 + max((int(match[1]) for name in names if (match := _BLOCK.match(name))), default=-1)


def _patch(backbone: State) -> int:
    return int(backbone["patch_embed.proj.weight"].shape[-1])


def _swin_size(backbone: State, state: State) -> tuple[int, int]:
    """Image size and window w: the table has (2 w - 1)^2 rows, the mask one entry per window of the first stage."""
    window = (math.isqrt(len(backbone[_SWIN_TABLE])) + 1) // 2
    masks = [tensor for name, tensor in state.items() if name.endswith("layers.0.blocks.1.attn_mask")]
    num_windows = math.isqrt(len(masks[0])) if masks else 8  # along a side; 8 in the published models
    return _patch(backbone) * window * num_windows, window
