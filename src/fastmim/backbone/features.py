"""What is asked of a timm model once it is made: its last map, its blocks, its position embedding."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, PatchEmbed, build_sincos2d_pos_embed, use_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastmim.errors import RequestError


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


def drops_tokens(model: nn.Module) -> bool:
    """Whether `visible_tokens` can be asked of it: a plain ViT whose patches do not overlap and have positions."""
    if not isinstance(model, VisionTransformer) or model.pos_embed is None:
        return False
    return isinstance(model.patch_embed, PatchEmbed)  # a stem of convolutions would see across patches


def visible_tokens(model: nn.Module, images: Tensor, visible: Tensor) -> Tensor:
    """Encode some of the patches as if there were no others (MAE, He et al., CVPR 2022, section 3).

    Args:
        model: One for which `drops_tokens` holds.
        images: (B, C, S, S), normalised.
        visible: (B, n) int64, the patches' positions in row-major order.

    Returns:
        (B, n, D), with the final norm.
    """
    vit: Any = model
    tokens = vit._pos_embed(vit.patch_embed(images))  # (B, prefix + N, D)
    prefix, patches = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
    patches = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[-1]))  # (B, n, D)
    tokens = vit.norm_pre(torch.cat([prefix, patches], dim=1))
    for block in vit.blocks:
        tokens = block(tokens)
    return vit.norm(tokens)[:, vit.num_prefix_tokens :]


def checkpoint_activations(model: nn.Module, blocks: Sequence[str]) -> None:
    """Have the named blocks keep only their input for the backward pass and compute the rest again."""
    for name in blocks:
        block = model.get_submodule(name)
        if "forward" not in vars(block):  # once, and not where the block is left out
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def list_checkpointable(model: nn.Module, name: str) -> list[str]:
    """The blocks for `checkpoint_activations`; RequestError if the model, called `name`, does not list them."""
    if not (blocks := list_blocks(model)):
        raise RequestError(
            f"checkpoint_activations is on, and {name} does not list its blocks; leave it off, and lower micro_batch "
            f"where memory is short"
        )
    return blocks


def fuse_attention(model: nn.Module) -> None:
    """Use `scaled_dot_product_attention` also where timm has it but leaves it off (Swin, XCiT, Visformer).

    Not if it is switched off for all of timm, by `timm.layers.set_fused_attn(False)` or TIMM_FUSED_ATTN=0.
    """
    if not use_fused_attn():
        return
    for module in model.modules():
        if getattr(module, "fused_attn", None) is False:
            module.fused_attn = True  # type: ignore[assignment]


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
