"""What is asked of a timm model once it is made: its last map, its blocks, its position embedding."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, build_sincos2d_pos_embed
from torch import Tensor, nn

from fastmim.config import RequestError


def last_map(model: nn.Module, images: Tensor, *, norm: bool) -> Tensor:
    """(B, C, S, S) images -> (B, D, h, h), the last of timm's intermediate maps.

    Args:
        model: Any timm model; all of them have `forward_intermediates` since 1.0.31.
        images: Normalised images.
        norm: Apply the final norm. Some models (Hiera) have it in their classifier only, and refuse.
    """
    intermediates: Any = model.forward_intermediates
    maps: list[Tensor] = intermediates(images, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True)
    return maps[-1]


def inner_map(model: nn.Module, images: Tensor, block: int, *, norm: bool) -> tuple[Tensor, Tensor | None]:
    """The map after one of the blocks, and the class token there if timm gives one.

    Args:
        model: Any timm model.
        images: (B, C, S, S), normalised.
        block: Position in `feature_info`: a block of a ViT, a stage of a hierarchical model.
        norm: As in `last_map`. ViTs apply it after whichever block, hierarchical models after the last stage.

    Returns:
        (B, D, h, h), and (B, D) or None.
    """
    intermediates: Any = model.forward_intermediates
    tells = "return_prefix_tokens" in inspect.signature(intermediates).parameters
    prefix = {"return_prefix_tokens": True} if tells else {}
    [found] = intermediates(
        images, indices=[block], norm=norm, stop_early=True, output_fmt="NCHW", intermediates_only=True, **prefix
    )
    if isinstance(found, Tensor):
        return found, None
    # Class token first, then registers; a model may have registers only.
    return found[0], found[1][:, 0] if getattr(model, "cls_token", None) is not None else None


def resample(x: Tensor, size: int) -> Tensor:
    """(B, C, H, H) -> (B, C, size, size) over the same extent, by bilinear antialiased interpolation."""
    if x.shape[-1] == size:
        return x
    # In float32: not every device can interpolate bfloat16.
    resampled = F.interpolate(x.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resampled.to(x.dtype)


def nearest_grid(img_size: int, side: float) -> int:
    """The grid nearest to a map of `side` cells that whole HOG cells fill.

    That is the map itself where it divides the image with a stride below 8, and else the nearest grid whose
    stride is a multiple of 8.

    Raises:
        RequestError: none lies within a factor of two.
    """
    divisors = [s for s in range(1, img_size + 1) if img_size % s == 0]
    grids = [img_size // s for s in divisors if s % 8 == 0 or (s < 8 and s * side == img_size)]
    grid = min(grids, key=lambda grid: abs(math.log(grid / side)), default=0)
    if not side / 2 <= grid <= side * 2:
        low = img_size // 32 * 32
        raise RequestError(
            f"img_size is {img_size}; expected whole HOG cells of 8 pixels under the backbone's map of about "
            f"{side:.0f} x {side:.0f}: take {' or '.join(str(size) for size in (low, low + 32) if size)}"
        )
    return grid


def list_blocks(model: nn.Module) -> list[str]:
    """Names of a model's blocks in the order they run: what timm's lists called `blocks` hold, over all stages.

    Empty for models without such lists, ResNets among them.
    """
    names: list[str] = []

    def collect(prefix: str, blocks: nn.Module) -> None:
        for child, block in blocks.named_children():
            if type(block) in (nn.Sequential, nn.ModuleList):  # stages in EfficientNet, pairs in DaViT
                collect(f"{prefix}.{child}", block)
            else:
                names.append(f"{prefix}.{child}")

    for name, module in model.named_modules():
        is_list = name.rpartition(".")[2] == "blocks" and isinstance(module, nn.Sequential | nn.ModuleList)
        if is_list and not name.startswith(tuple(f"{seen}." for seen in names)):
            collect(name, module)
    return names


def num_kept(num_blocks: int, share: float) -> int:
    """How many of the blocks a share of them is, rounded up; RequestError unless 0 < share <= 1."""
    if not 0 < share <= 1:
        raise RequestError(f"encoder_depth {share}: expected a share above 0 and at most 1, such as 0.75")
    if share < 1 and num_blocks == 0:
        raise RequestError(f"encoder_depth {share}: expected 1, as this backbone does not list its blocks")
    return math.ceil(share * num_blocks - 1e-9)  # 0.55 * 20 is 11.000000000000002


def leave_out(model: nn.Module, blocks: Sequence[str]) -> None:
    """Have the named blocks return their input. They stay part of the model, so its weights are whole."""
    for name in blocks:
        model.get_submodule(name).forward = _pass_on


def drop_no_paths(model: nn.Module) -> None:
    """Switch drop path off: some of timm's constructors (Swin's) default to 0.1, and pre-training has none."""
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


def _pass_on(x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


def start_from_sincos(model: nn.Module) -> None:
    """Give a plain ViT's position embedding MAE's 2-D sine-cosine values, and its prefix tokens' rows zeros.

    A plain ViT is a model with a learned `pos_embed` (1, prefix + h * w, D) over the h x w cells of
    `patch_embed.grid_size`. The first D/2 channels encode the row, the others the column, each as D/4 sines
    followed by D/4 cosines of position * 10000^(-i / (D/4)). Other models are left as they are.
    """
    table = getattr(model, "pos_embed", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if not isinstance(table, nn.Parameter) or table.ndim != 3 or table.shape[-1] % 4 or not grid:
        return
    num_prefix = table.shape[1] - grid[0] * grid[1]
    if num_prefix not in (0, getattr(model, "num_prefix_tokens", 0)):
        return
    with torch.no_grad():
        table[:, :num_prefix] = 0
        table[:, num_prefix:] = build_sincos2d_pos_embed(
            grid, table.shape[-1], interleave_sin_cos=True, device=table.device
        )


def untrained_head(whole: Mapping[str, Tensor], bare: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a state with a classifier has and one without has not: norms at identity, else zero."""
    head = {}
    for name in whole.keys() - bare.keys():
        shape, dtype = whole[name].shape, whole[name].dtype
        is_scale = name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1)
        head[name] = torch.full(shape, is_scale, dtype=dtype)
    return head
