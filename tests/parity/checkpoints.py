"""Small checkpoints in the layouts of the official pre-trainings, and their features, predictions and losses in float64.

The formulas are those of `reference` and `foreign_models`; `started` is our side, through `fastmim.convert`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastmim
from fastmim import config
from fastmim.method.build import build_model, start_from
from fastmim.method.mim import MIM
from fastmim.method.settings import PretrainConfig
from fastmim.randomness import image_keys
from fastmim.weights.convert import Conversion
from foreign_models import (
    Maker,
    State,
    cmt_forward,
    norm,
    pvt_forward,
    simmim_vit_forward,
    swin_forward,
    vit_forward,
)
from parity import reference
from parity.reference import DECODER_DEPTH, DECODER_WIDTH, PATCH, SIZE

VIT: dict[str, Any] = {
    "backbone": "vit_base_patch16_224",
    "backbone_args": {"patch_size": PATCH, "embed_dim": reference.WIDTH, "depth": 2, "num_heads": reference.HEADS},
}
SWIN: dict[str, Any] = {
    "backbone": "swin_tiny_patch4_window7_224",
    "backbone_args": {"embed_dim": 32, "depths": [2, 2, 2], "num_heads": [1, 2, 4]},
}
PVT: dict[str, Any] = {
    "backbone": "pvt_v2_b2",
    "backbone_args": {
        "embed_dims": [16, 32, 32, 48], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 3], "mlp_ratios": [2, 2, 2, 2],
    },
}  # fmt: skip
CMT: dict[str, Any] = {
    "backbone": "cmt_s",
    "backbone_args": {
        "stem_width": 8, "embed_dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
        "head_width": 40,
    },
}  # fmt: skip
BEIT: dict[str, Any] = {
    "backbone": "beit_base_patch16_224",
    "backbone_args": {"embed_dim": 64, "depth": 2, "num_heads": 4},
}
OURS = {"decoder": f"{DECODER_WIDTH}x{DECODER_DEPTH}", "block": PATCH}
SIMMIM = {"decoder": "linear", "target": "rgb", "loss": "l1"}


@dataclass(frozen=True)
class Official:
    """A checkpoint of another project, and what its code makes of it."""

    state: State
    network: dict[str, Any]
    """Arguments of `convert`."""
    settings: dict[str, Any]
    """Settings of `pretrain` that go on with it."""
    size: int
    """Side of the images in pixels."""
    first: tuple[str, str]
    """The encoder's first weight: its official name, and timm's."""
    features: Callable[[State, Tensor], Tensor]
    """Weights and images (B, 3, size, size) -> the encoder's map (B, D, h, w)."""
    predict: Callable[[State, Tensor, Tensor], Tensor]
    """Weights, images and mask (B, h, w) -> predictions (B, h * w, K)."""


def fastmim_vit(target: str = "hog") -> Official:
    channels = 27 if target == "hog" else 3 * PATCH**2
    state = reference.official_checkpoint(out_channels=channels, mask_token=(1, 3, 1, 1))
    return Official(
        state,
        VIT,
        OURS | {"target": target},
        SIZE,
        _same("patch_embed.proj.weight"),
        _vit_map,
        _flipped(reference.fastmim),
    )


def mae() -> Official:
    state = reference.official_checkpoint(out_channels=3 * PATCH**2, mask_token=(1, 1, DECODER_WIDTH))
    positions = torch.cat([torch.zeros(1, DECODER_WIDTH), reference.sincos(DECODER_WIDTH).float()])
    settings = OURS | {"target": "pixels", "masking": "drop"}
    state = state | {"decoder_pos_embed": positions[None]}
    return Official(state, VIT, settings, SIZE, _same("patch_embed.proj.weight"), _vit_map, _flipped(reference.mae))


def fastmim_swin() -> Official:
    """Two HOG cells along a side of a position."""
    make = Maker()
    make.swin("encoder.", width=32, depths=(2, 2, 2), heads=(1, 2, 4), window=2, side=32)
    return _fastmim(make, SWIN, 128, 4 * 27, 32, "patch_embed.proj.weight", "patch_embed.proj.weight", _swin_map)


def fastmim_pvt() -> Official:
    """Four HOG cells along a side of a position."""
    make = Maker()
    make.pvt("encoder.", widths=(16, 32, 32, 48), depth=1, reductions=(8, 4, 2, 1))
    return _fastmim(make, PVT, 48, 16 * 27, 64, "patch_embed1.proj.weight", "patch_embed.proj.weight", _pvt_map)


def fastmim_cmt() -> Official:
    make = Maker()
    make.cmt("encoder.", stem=8, widths=(16, 24, 32, 48), heads=(1, 1, 2, 2), side=64)
    make.norm("encoder.norm", 48)
    return _fastmim(make, CMT, 48, 16 * 27, 64, "stem_conv1.weight", "stem.0.weight", _cmt_map)


def simmim_swin() -> Official:
    make = Maker()
    make.swin("encoder.", width=32, depths=(2, 2, 2), heads=(1, 2, 4), window=2, side=32)
    make("encoder.mask_token", 1, 1, 32)
    make("decoder.0.weight", 3 * 16**2, 128, 1, 1)
    make("decoder.0.bias", 3 * 16**2)
    first = ("encoder.patch_embed.proj.weight", "patch_embed.proj.weight")
    return Official(make.state, SWIN, SIMMIM, 32, first, _swin_map, _simmim(_swin_map))


def simmim_vit() -> Official:
    make = Maker()
    make.simmim_vit(64, 3)
    first = ("encoder.patch_embed.proj.weight", "patch_embed.proj.weight")
    return Official(make.state, BEIT, SIMMIM, 48, first, _simmim_vit_map, _simmim(_simmim_vit_map))


CHECKPOINTS: dict[str, Callable[[], Official]] = {
    "FastMIM ViT": fastmim_vit,
    "FastMIM ViT, pixels": lambda: fastmim_vit("pixels"),
    "FastMIM Swin": fastmim_swin,
    "FastMIM PVTv2": fastmim_pvt,
    "FastMIM CMT": fastmim_cmt,
    "MAE ViT": mae,
    "SimMIM Swin": simmim_swin,
    "SimMIM ViT": simmim_vit,
}


def loss(official: Official, state: State, images: Tensor, output: dict[str, Tensor]) -> Tensor:
    """The official loss on the mask of an output of ours; HOG is compared elsewhere, and taken from the output.

    Args:
        state: The checkpoint in float64; for SimMIM with the "mask_token" that is painted over pixels.
    """
    mask, target = output["mask"], official.settings.get("target", "hog")
    predicted = official.predict(state, images.double(), mask)
    if target == "rgb":  # SimMIM: the absolute error of the hidden pixels
        side = official.size // mask.shape[-1]
        pixels = F.pixel_shuffle(predicted.transpose(1, 2).unflatten(2, mask.shape[1:]), side)
        hidden = _over_pixels(mask, official.size)
        return ((pixels - images).abs() * hidden).sum() / hidden.sum() / 3
    hog = output["target"].flatten(2).transpose(1, 2).double()
    wanted = hog if target == "hog" else patches(images)
    return (predicted - wanted).square()[mask.flatten(1)].mean()


def patches(images: Tensor) -> Tensor:
    """(B, N, K), standardised, in the order of MAE and FastMIM: row, column, colour."""
    cut = images.double().unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, GRID, GRID, PATCH, PATCH)
    target = cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()


def in_double(state: State) -> State:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def converted(folder: Path, state: State, network: dict[str, Any]) -> Conversion:
    torch.save({"model": state}, folder / "official.pth")
    return fastmim.convert(folder / "official.pth", out=folder / "w.safetensors", overwrite=True, **network)


def started(conversion: Conversion, **settings: Any) -> tuple[MIM, str]:
    """The model of a pre-training with --init, before its first step, and what the console says of its start."""
    given = {"backbone": conversion.backbone, "backbone_args": conversion.arguments, "img_size": conversion.img_size}
    given |= {"data": "samples", "out": "run", "init": str(conversion.path)} | settings
    whole = config.build(PretrainConfig, given)
    model = build_model(whole)
    return model.eval(), start_from(model, str(conversion.path), target=whole.target)


def run(model: MIM, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Random images and the model's output on them."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return images, model(images, image_keys(0, 0, torch.arange(2)))


def _same(name: str) -> tuple[str, str]:
    return name, name


def _fastmim(
    make: Maker, network: dict[str, Any], width: int, outputs: int, size: int, first: str, ours: str, encode: Any
) -> Official:
    make.decoder(width, 64, outputs)
    make("mask_token", 1, 3, 1, 1)

    def predict(state: State, images: Tensor, mask: Tensor) -> Tensor:
        return reference.predict(encode(state, _painted(images, mask, state["mask_token"])), state)

    return Official(make.state, network, {"decoder": "64x1"}, size, (f"encoder.{first}", ours), encode, predict)


def _simmim(encode: Callable[[State, Tensor], Tensor]) -> Callable[[State, Tensor, Tensor], Tensor]:
    def predict(state: State, images: Tensor, mask: Tensor) -> Tensor:
        features = encode(state, _painted(images, mask, state["mask_token"]))
        return F.conv2d(features, state["decoder.0.weight"], state["decoder.0.bias"]).flatten(2).transpose(1, 2)

    return predict


def _flipped(predict: Callable[[Tensor, Tensor, State], Tensor]) -> Callable[[State, Tensor, Tensor], Tensor]:
    return lambda state, images, mask: predict(images, mask, state)


def _over_pixels(mask: Tensor, size: int) -> Tensor:
    side = size // mask.shape[-1]
    return mask.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]


def _painted(images: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    return torch.where(_over_pixels(mask, images.shape[-1]), token.reshape(1, 3, 1, 1), images)


def _vit_map(state: State, images: Tensor) -> Tensor:
    tokens = vit_forward(state, images, reference.HEADS)[:, 1:]
    return tokens.transpose(1, 2).unflatten(2, (images.shape[-1] // PATCH,) * 2)


def _simmim_vit_map(state: State, images: Tensor) -> Tensor:
    tokens = simmim_vit_forward(state, images, 4)[:, 1:]
    return tokens.transpose(1, 2).unflatten(2, (images.shape[-1] // 16,) * 2)


def _swin_map(state: State, images: Tensor) -> Tensor:
    return swin_forward(state, images, prefix="encoder.", heads=(1, 2, 4), window=2).movedim(-1, 1)


def _pvt_map(state: State, images: Tensor) -> Tensor:
    return pvt_forward(state, images, prefix="encoder.", heads=(1, 2, 2, 3))


def _cmt_map(state: State, images: Tensor) -> Tensor:
    features = cmt_forward(state, images, prefix="encoder.", heads=(1, 1, 2, 2))
    return norm(state, "encoder.norm", features.movedim(1, -1), 1e-6).movedim(-1, 1)
