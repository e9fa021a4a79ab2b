"""timm's backbones in the layout of transformers, where it has the same architecture: configuration and tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmim.errors import RunError
from fastmim.weights.graphs import Reloaded

FAMILIES = "ViT, DINOv2's ViT (with registers or without), Swin, ConvNeXt, PVTv2"
"""What `layout_of` knows, in words."""


class Unsupported(ValueError):  # noqa: N818 - describes a model, not the program
    """transformers has no such architecture; the message is the reason."""


@dataclass(frozen=True)
class Layout:
    """A backbone as transformers stores it."""

    config: dict[str, Any]
    """config.json."""
    tensors: dict[str, Tensor]
    """model.safetensors, under the names of the published checkpoints, which all versions read."""
    options: dict[str, Any]
    """Arguments of `from_pretrained` besides the directory."""
    pooled: bool
    """Whether `pooler_output` is timm's pooled embedding."""


Renames = Sequence[tuple[str, str]]

_ATTENTION = [
    (r"norm1\.", r"layernorm_before."),
    (r"norm2\.", r"layernorm_after."),
    (r"attn\.proj\.", r"attention.output.dense."),
    (r"mlp\.fc1\.", r"intermediate.dense."),
    (r"mlp\.fc2\.", r"output.dense."),
]
_PATCHES = [
    (r"^cls_token$", r"embeddings.cls_token"),
    (r"^pos_embed$", r"embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", r"embeddings.patch_embeddings.projection."),
]
_VIT = [
    *_PATCHES,
    (r"^norm\.", r"layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"attn\.(query|key|value)\.", r"attention.attention.\1."),
    *_ATTENTION,
]
_DINOV2 = [
    *_PATCHES,
    (r"^reg_token$", r"embeddings.register_tokens"),
    (r"^norm\.", r"layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"attn\.(query|key|value)\.", r"attention.attention.\1."),
    (r"attn\.proj\.", r"attention.output.dense."),
    (r"ls(\d)\.gamma$", r"layer_scale\1.lambda1"),
]
_SWIN = [
    *_PATCHES,
    (r"^patch_embed\.norm\.", r"embeddings.norm."),
    (r"^norm\.", r"layernorm."),
    (r"^layers\.(\d+)\.", r"encoder.layers.\1."),
    (r"attn\.(query|key|value)\.", r"attention.self.\1."),
    (r"attn\.relative_position_bias_table$", r"attention.self.relative_position_bias_table"),
    *[(rf"(blocks\.\d+\.){old}", rf"\1{new}") for old, new in _ATTENTION],
]
_CONVNEXT = [
    (r"^stem\.0\.", r"embeddings.patch_embeddings."),
    (r"^stem\.1\.", r"embeddings.layernorm."),
    (r"^head\.norm\.", r"layernorm."),
    (r"^stages\.(\d+)\.downsample\.", r"encoder.stages.\1.downsampling_layer."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"encoder.stages.\1.layers.\2."),
    (r"\.gamma$", r".layer_scale_parameter"),
    (r"\.conv_dw\.", r".dwconv."),
    (r"(layers\.\d+)\.norm\.", r"\1.layernorm."),
    (r"mlp\.fc(\d)\.", r"pwconv\1."),
]
_PVT = [
    (r"^patch_embed\.", r"stages.0.downsample."),
    (r"^stages\.(\d+)\.downsample\.norm\.", r"encoder.layers.\1.patch_embedding.layer_norm."),
    (r"^stages\.(\d+)\.downsample\.", r"encoder.layers.\1.patch_embedding."),
    (r"^stages\.(\d+)\.norm\.", r"encoder.layers.\1.layer_norm."),
    (r"^stages\.", r"encoder.layers."),
    (r"\.norm(\d)\.", r".layer_norm_\1."),
    (r"attn\.q\.", r"attention.query."),
    (r"attn\.sr\.", r"attention.spatial_reduction."),
    (r"attn\.norm\.", r"attention.layer_norm."),
    (r"attn\.", r"attention."),
    (r"mlp\.dwconv\.", r"mlp.dwconv.dwconv."),
    (r"mlp\.fc(\d)\.", r"mlp.dense\1."),
]


def layout_of(model: nn.Module, img_size: int, num_channels: int) -> Layout:
    """The layout of a timm model without classifier.

    Args:
        model: As `load_backbone` makes it.
        img_size: Side of its images in pixels.
        num_channels: Of its images.

    Raises:
        Unsupported: transformers has no such architecture.
    """
    kind = type(model).__name__
    if kind not in _FAMILIES:
        raise Unsupported(f"timm's {kind} is none of them")
    found = _FAMILIES[kind](model, img_size)
    found.config.update({"hidden_act": "gelu", "image_size": img_size, "num_channels": num_channels})
    return found


def preprocessor(img_size: int, *, mean: list[float], std: list[float]) -> dict[str, Any]:
    """preprocessor_config.json: the central square, resized bicubically and normalised."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": img_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": img_size, "width": img_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def reload(directory: Path, layout: Layout, timms: Any) -> Reloaded:
    """The model in a directory, as transformers loads it, with the outputs of `export.Features`.

    Args:
        directory: Holds config.json and model.safetensors.
        layout: What they hold.
        timms: The same as timm's model, whose pooling is used where transformers has none.

    Raises:
        RunError: transformers takes other tensors.
    """
    import transformers

    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        kind = getattr(transformers, layout.config["architectures"][0])
        model, found = kind.from_pretrained(directory, output_loading_info=True, **layout.options)
    finally:
        if shown:
            bars.enable_progress_bar()
    if wrong := [name for names in found.values() for name in names]:
        raise RunError(
            f"transformers {transformers.__version__} loads {', '.join(map(str, wrong[:3]))} in another way; expected "
            f"the names of published checkpoints: install another version, or take --to timm"
        )
    model = model.eval()

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model(images)
        features = outputs.last_hidden_state
        if layout.config["model_type"] == "swin":  # timm's has rows and columns
            features = features.unflatten(1, (math.isqrt(features.shape[1]), -1))
        return features, outputs.pooler_output.flatten(1) if layout.pooled else timms.forward_head(features)

    return run


def _vit(model: Any, img_size: int) -> Layout:
    block = model.blocks[0]
    state = dict(_split(model.state_dict()))
    scaled, registers = hasattr(block.ls1, "gamma"), "reg_token" in state
    width, patch = model.embed_dim, model.patch_embed.patch_size
    _require(type(block).__name__ == "Block" and type(block.mlp).__name__ == "Mlp", "its blocks are no plain ones")
    _require("cls_token" in state, "it has no class token, which transformers' has")
    _require(scaled or not registers, "it has registers, but no layer scale")
    _require(patch[0] == patch[1], "its patches are no squares")
    if registers:  # timm has no position for the class token there
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, width), state["pos_embed"]], dim=1)
    config = {
        "hidden_size": width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "patch_size": patch[0],
        "qkv_bias": block.attn.qkv.bias is not None,
        "layer_norm_eps": model.norm.eps,
    }
    hidden = block.mlp.fc1.out_features
    if not scaled:
        config |= {"model_type": "vit", "architectures": ["ViTModel"], "intermediate_size": hidden}
        return Layout(config, _renamed(state, _VIT), {"add_pooling_layer": False}, pooled=False)
    _require(hidden % width == 0, "its MLP is no multiple of its width")
    name, kind = ("dinov2_with_registers", "Dinov2WithRegisters") if registers else ("dinov2", "Dinov2")
    config |= {"model_type": name, "architectures": [f"{kind}Model"], "mlp_ratio": hidden // width}
    if registers:
        config["num_register_tokens"] = state["reg_token"].shape[1]
    tensors = _renamed(state, _DINOV2)
    tensors["embeddings.mask_token"] = torch.zeros(1, width)  # for pre-training only
    return Layout(config, tensors, {}, pooled=False)


def _swin(model: Any, img_size: int) -> Layout:
    blocks = [block for layer in model.layers for block in layer.blocks]
    windows = {tuple(block.attn.window_size) for block in blocks}
    sides = ", ".join(" x ".join(map(str, window)) for window in sorted(windows))
    _require(
        len(windows) == 1 and len(set(*windows)) == 1,
        f"its windows are {sides}, and transformers' are squares of one size: give an --img-size where they are equal",
    )
    config = {
        "model_type": "swin",
        "architectures": ["SwinModel"],
        "embed_dim": model.embed_dim,
        "depths": [len(layer.blocks) for layer in model.layers],
        "num_heads": [layer.blocks[0].attn.num_heads for layer in model.layers],
        "window_size": blocks[0].attn.window_size[0],
        "patch_size": model.patch_embed.patch_size[0],
        "mlp_ratio": blocks[0].mlp.fc1.out_features / blocks[0].mlp.fc1.in_features,
        "qkv_bias": blocks[0].attn.qkv.bias is not None,
        "layer_norm_eps": model.norm.eps,
    }
    # timm's stages begin with what transformers' end with.
    state = {
        re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name): tensor
        for name, tensor in _split(model.state_dict())
    }
    return Layout(config, _renamed(state, _SWIN), {}, pooled=True)


def _convnext(model: Any, img_size: int) -> Layout:
    blocks = [stage.blocks for stage in model.stages]
    first = blocks[0][0]
    _require(first.gamma is not None, "its blocks have no layer scale (ConvNeXt V2)")
    _require(isinstance(first.norm, nn.LayerNorm), "its norms are no LayerNorms")
    _require(len(model.stem) == 2, "its stem is no single convolution")
    _require(first.conv_dw.kernel_size == (7, 7) and len(blocks) == 4, "its stages are no ConvNeXt's")
    config = {
        "model_type": "convnext",
        "architectures": ["ConvNextModel"],
        "depths": [len(stage) for stage in blocks],
        "hidden_sizes": [stage[0].conv_dw.out_channels for stage in blocks],
        "patch_size": model.stem[0].kernel_size[0],
        "layer_norm_eps": model.head.norm.eps,
    }
    state = {  # the small ones have convolutions of one pixel for linear layers
        name: tensor.flatten(1) if re.search(r"mlp\.fc\d\.weight$", name) else tensor
        for name, tensor in model.state_dict().items()
    }
    return Layout(config, _renamed(state, _CONVNEXT), {}, pooled=True)


def _pvt(model: Any, img_size: int) -> Layout:
    firsts = [stage.blocks[0] for stage in model.stages]
    reductions = [getattr(block.attn.sr, "stride", (1,))[0] if block.attn.sr is not None else 1 for block in firsts]
    eps = firsts[0].norm1.eps
    embeddings = [model.patch_embed, *(stage.downsample for stage in list(model.stages)[1:])]
    config = {
        "model_type": "pvt_v2",
        "architectures": ["PvtV2Model"],
        "depths": [len(stage.blocks) for stage in model.stages],
        "hidden_sizes": [block.attn.dim for block in firsts],
        "num_attention_heads": [block.attn.num_heads for block in firsts],
        "sr_ratios": reductions,
        "mlp_ratios": [block.mlp.fc1.out_features // block.mlp.fc1.in_features for block in firsts],
        "patch_sizes": [embedding.proj.kernel_size[0] for embedding in embeddings],
        "strides": [embedding.proj.stride[0] for embedding in embeddings],
        "linear_attention": firsts[0].attn.pool is not None,
        "qkv_bias": firsts[0].attn.q.bias is not None,
        "layer_norm_eps": eps,
    }
    state = dict(_split(model.state_dict()))
    # transformers has one epsilon for all LayerNorms. One after a convolution c has LN(c; e) = LN(sqrt(f) c; f e).
    for name, module in model.named_modules():
        before = re.sub(r"(attn)\.norm$", r"\1.sr", re.sub(r"(patch_embed|downsample)\.norm$", r"\1.proj", name))
        if before != name and isinstance(module, nn.LayerNorm):
            for kind in ("weight", "bias"):
                state[f"{before}.{kind}"] = state[f"{before}.{kind}"] * (eps / module.eps) ** 0.5
    return Layout(config, _renamed(state, _PVT), {}, pooled=False)


_FAMILIES: dict[str, Callable[[Any, int], Layout]] = {
    "VisionTransformer": _vit,
    "SwinTransformer": _swin,
    "ConvNeXt": _convnext,
    "PyramidVisionTransformerV2": _pvt,
}


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Unsupported(otherwise)


def _split(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values as tensors of their own."""
    for name, tensor in state.items():
        for fused, parts in ((".qkv.", ("query", "key", "value")), (".kv.", ("key", "value"))):
            if fused in name:
                for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
                    yield name.replace(fused, f".{part}."), piece.clone()
                break
        else:
            yield name, tensor


def _renamed(state: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found
