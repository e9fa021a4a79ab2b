"""Checkpoints of other projects: their tensor names, and the timm model that their tensors belong to.

The names follow the published code of FastMIM (ggjy/FastMIM.pytorch), MAE (facebookresearch/mae), SimMIM
(microsoft/SimMIM), and the networks in `renaming`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
from timm.models import get_model_input_config
from torch import Tensor

from fastmim.backbone import published_input
from fastmim.backbone.architecture import Architecture
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError
from fastmim.weights.renaming import Naming, naming_of, timm_name

State = Mapping[str, Tensor]

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_COMPUTED = ("relative_position_index", "attn_mask")  # buffers of Swin and BEiT that depend on the sizes alone
_SWIN_TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_BEIT_TABLES = (_SHARED_TABLE, "blocks.0.attn.relative_position_bias_table")
_CMT_TABLE = "stages.0.position_bias"
_CMT = (64, (3, 3, 16, 3))
_VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
_SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}
_PVTS: dict[tuple[int, tuple[int, ...]], str] = {
    (32, (2, 2, 2, 2)): "b0",
    (64, (2, 2, 2, 2)): "b1",
    (64, (3, 4, 6, 3)): "b2",
    (64, (3, 4, 18, 3)): "b3",
    (64, (3, 8, 27, 3)): "b4",
    (64, (3, 6, 40, 3)): "b5",
}
_DECODER = ("mask_token", "decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")
_HEADS = "FastMIM's code pre-trains its ViT-B with 6 heads and fine-tunes it with 12, in the same shapes: "
_AS_PRETRAINED = "the file says 6; for the published start of fine-tuning, convert with --backbone-args.num_heads 12"


@dataclass(frozen=True)
class Layout:
    """The tensor names of one project's checkpoints."""

    method: str
    """"FastMIM", "MAE", "SimMIM", "timm", or the network whose original code has these names."""
    naming: Naming | None = None
    """The backbone's names; None for timm's."""
    prefix: str = ""
    """Prefix of the backbone's tensors."""
    other: tuple[str, ...] = ()
    """Prefixes of the method's own tensors (decoder, mask token)."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments with which timm makes the same network."""


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
            return Layout("FastMIM", naming_of(state, "encoder."), "encoder.", _DECODER)
        return Layout("FastMIM", None, "", _DECODER, {"num_heads": 6})
    if "encoder.mask_token" in state:
        arguments: dict[str, Any] = {}
        if f"encoder.{_SHARED_TABLE}" in state:
            # SimMIM's ViT is timm's BEiT with one table of position biases for all blocks and the norm before pooling.
            arguments = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False}
        other = ("encoder.mask_token", "decoder.0.")
        return Layout("SimMIM", naming_of(state, "encoder."), "encoder.", other, arguments)
    if "decoder_pos_embed" in state:
        return Layout("MAE", None, "", _DECODER)
    naming = naming_of(state)
    return Layout(naming.network if naming else "timm", naming)


def split(state: State, layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors under timm's names, and the names of all other known tensors.

    Unknown tensors count as the backbone's, so that they are refused later as not fitting the model.

    Raises:
        RequestError: two tensors are the same one under timm's names.
    """
    backbone: dict[str, Tensor] = {}
    dropped: list[str] = []
    origins: dict[str, str] = {}
    for name, tensor in state.items():
        if name.startswith(layout.other or ("\0",)) or name.endswith(_COMPUTED):
            dropped.append(name)
            continue
        new = name.removeprefix(layout.prefix)
        new = timm_name(new, layout.naming) if layout.naming else new
        if new in backbone:
            raise RequestError(
                f"the checkpoint holds {origins[new]} and {name}, which are one tensor of the network; expected each "
                f"once: save the model's state_dict"
            )
        backbone[new], origins[new] = tensor, name
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
        RequestError: no name is given, and the tensors are not of a known ViT, Swin, PVTv2 or CMT.
    """
    name = name or _name(backbone)
    given = layout.arguments | dict(arguments)
    architecture = Architecture(name, given)
    native: int = get_model_input_config(architecture.bare)["input_size"][-1]
    own = architecture.bare.state_dict()
    if "fc_norm.weight" in backbone and "norm.weight" not in backbone and "fc_norm.weight" not in own:
        given["global_pool"] = "avg"  # MAE's and FastMIM's fine-tuned ViTs: the norm comes after the mean
    size, window = native, None
    if _SWIN_TABLE in backbone:
        size, window = _swin_size(backbone, state)
        if "window_size" not in given and (size, backbone[_SWIN_TABLE].shape) != (
            native,
            own[_SWIN_TABLE].shape,
        ):
            given["window_size"] = window
    elif table := next((name for name in _BEIT_TABLES if name in backbone), None):
        # (2 g - 1)^2 offsets and three rows for the class token, g being the side of the grid
        size = (math.isqrt(max(0, len(backbone[table]) - 3)) + 1) // 2 * _patch(backbone)
    elif _CMT_TABLE in backbone:
        size = math.isqrt(backbone[_CMT_TABLE].shape[1]) * 4  # (heads, queries, keys) on the map of stride 4
    elif "pos_embed" in backbone and "patch_embed.proj.weight" in backbone and backbone["pos_embed"].ndim == 3:
        patch = _patch(backbone)
        prefix = own["pos_embed"].shape[1] - (native // patch) ** 2 if "pos_embed" in own else 0
        size = math.isqrt(max(0, backbone["pos_embed"].shape[1] - prefix)) * patch
    mean, std, note = _normalisation(name, layout)
    if layout.arguments.get("num_heads"):
        heads = arguments.get("num_heads")
        note = _HEADS + (f"the file says {heads}, as given" if heads else _AS_PRETRAINED)
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
    depths = tuple(_num_blocks(backbone, f"stages.{stage}.") for stage in range(4))
    if _CMT_TABLE in backbone:
        width = len(backbone.get("stages.0.downsample.0.weight", ()))
        name = "cmt_s" if (width, depths) == _CMT else ""
    elif "patch_embed.proj.weight" in backbone:
        width, patch = len(backbone["patch_embed.proj.weight"]), _patch(backbone)
        if _SWIN_TABLE in backbone:
            name = f"swin_{_SWINS.get((width, _num_blocks(backbone, 'layers.2.')))}_patch{patch}_window7_224"
        elif "stages.0.norm.weight" in backbone:
            name = f"pvt_v2_{_PVTS.get((width, depths))}"
        else:
            family = "beit" if any(table in backbone for table in _BEIT_TABLES) else "vit"
            name = f"{family}_{_VITS.get((width, _num_blocks(backbone)))}_patch{patch}_224"
    if name not in timm.list_models():
        raise RequestError(
            f"the checkpoint's backbone ({', '.join(list(backbone)[:3])} and so on) is no ViT, Swin, PVTv2 or CMT of a "
            f"known size; expected its timm name: --backbone NAME"
        )
    return name


def _num_blocks(names: Iterable[str], prefix: str = "") -> int:
    blocks = (_BLOCK.match(name.removeprefix(prefix)) for name in names if name.startswith(prefix))
    return 1 + max((int(match[1]) for match in blocks if match), default=-1)


def _patch(backbone: State) -> int:
    return int(backbone["patch_embed.proj.weight"].shape[-1])


def _swin_size(backbone: State, state: State) -> tuple[int, int]:
    """Image size and window w: the table has (2 w - 1)^2 rows, the mask one entry per window of the first stage."""
    window = (math.isqrt(len(backbone[_SWIN_TABLE])) + 1) // 2
    masks = [tensor for name, tensor in state.items() if name.endswith("layers.0.blocks.1.attn_mask")]
    num_windows = math.isqrt(len(masks[0])) if masks else 8  # along a side; 8 in the published models
    return _patch(backbone) * window * num_windows, window
