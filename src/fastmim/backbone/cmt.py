"""CMT-S (Guo et al., CVPR 2022), which timm lacks: convolutions and attention in every block.

Importing `fastmim.backbone` registers it with timm, so that `timm.create_model("cmt_s")` and weights files of it work.
Written from the paper's description (arXiv 2107.06263, section 3 and table 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerNorm2d, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

_STRIDE = 32


class Attention(nn.Module):
    """Attention from all pixels of a map to a k times smaller one, with a bias for each offset between the two.

    Args:
        dim: Channels D.
        num_heads: N.
        reduction: k, kernel size and stride of the convolution that makes the smaller map.
        grid: (h, w) of the map, multiples of k.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads, self.reduction = num_heads, reduction
        self.query = nn.Linear(dim, dim)
        self.reduce = nn.Conv2d(dim, dim, reduction, reduction, groups=dim) if reduction > 1 else nn.Identity()
        self.key_value = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        # The offset of a query in row y to a key over the rows from k * i is y - k * i, from -(h - k) to h - 1.
        sides = [2 * side - reduction for side in grid]
        self.relative_position_bias = nn.Parameter(trunc_normal_(torch.empty(num_heads, *sides), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> the same."""
        B, D, h, w = x.shape
        heads = (B, -1, self.num_heads, D // self.num_heads)
        query = self.query(x.flatten(2).transpose(1, 2)).view(heads).transpose(1, 2)  # (B, N, h * w, D / N)
        reduced = self.reduce(x).flatten(2).transpose(1, 2)  # (B, h * w / k^2, D)
        key, value = (y.reshape(heads).transpose(1, 2) for y in self.key_value(reduced).chunk(2, dim=-1))
        bias = self.bias(h, w).to(query.dtype)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(y.transpose(1, 2).flatten(2)).transpose(1, 2).view(B, D, h, w)

    def bias(self, h: int, w: int) -> Tensor:
        """(N, h * w, h * w / k^2): the table's entry for each query and key.

        The queries' offsets to one key are h consecutive ones; those to the next key start k earlier.
        """
        k = self.reduction
        windows = self.relative_position_bias.unfold(1, h, k).unfold(2, w, k).flip(1, 2)  # (N, h / k, w / k, h, w)
        return windows.flatten(3).flatten(1, 2).transpose(1, 2)

    def resize(self, grid: tuple[int, int]) -> None:
        """Take maps of another size: each offset keeps its value as a share of the map."""
        old = [(side + self.reduction) // 2 for side in self.relative_position_bias.shape[1:]]
        if tuple(old) == grid:
            return
        rows, columns = (
            _interpolation(a, b, self.reduction, self.relative_position_bias) for a, b in zip(old, grid, strict=True)
        )
        table = rows @ self.relative_position_bias.detach() @ columns.T
        self.relative_position_bias = nn.Parameter(table, self.relative_position_bias.requires_grad)


def _interpolation(old: int, new: int, reduction: int, like: Tensor) -> Tensor:
    """(2 * new - k, 2 * old - k) matrix that interpolates a bias linearly over offsets, constant beyond its ends."""
    # Both tables are centred on the offset 0 between the centres of query and key.
    num_old, num_new = 2 * old - reduction, 2 * new - reduction
    offsets = torch.arange(num_new, dtype=like.dtype, device=like.device) - (num_new - 1) / 2
    places = (offsets * (old / new) + (num_old - 1) / 2).clamp(0, num_old - 1)
    distances = places[:, None] - torch.arange(num_old, dtype=like.dtype, device=like.device)
    return (1 - distances.abs()).clamp(min=0)


class FeedForward(nn.Module):
    """Inverted residual feed-forward: D -> H, a depthwise 3x3 with a shortcut, H -> D."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden))
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = nn.Sequential(nn.GELU(), nn.BatchNorm2d(hidden))
        self.project = nn.Sequential(nn.Conv2d(hidden, dim, 1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> the same."""
        x = self.expand(x)
        return self.project(self.norm(x + self.depthwise(x)))


class Block(nn.Module):
    """Local perception (depthwise 3x3), attention and feed-forward, each with a shortcut."""

    def __init__(
        self, dim: int, num_heads: int, reduction: int, hidden: int, grid: tuple[int, int], drop_path: float
    ) -> None:
        super().__init__()
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = LayerNorm2d(dim)
        self.attn = Attention(dim, num_heads, reduction, grid)
        self.norm2 = LayerNorm2d(dim)
        self.mlp = FeedForward(dim, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> the same."""
        x = x + self.local(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """A 2x2 convolution that halves the map, then blocks."""

    def __init__(self, in_dim: int, dim: int, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.Conv2d(in_dim, dim, 2, stride=2), LayerNorm2d(dim))
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, D', 2h, 2w) -> (B, D, h, w)."""
        x = self.downsample(x)
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)


class CMT(nn.Module):
    """CMT with timm's interface.

    The classifier is a projection of the pooled map and one linear layer. The projection exists even without
    classes, so that weights files include it, but the output is then the pooled map itself.

    Args:
        img_size: Side of the images in pixels, or (height, width); multiples of 32.
        in_chans: Image channels.
        num_classes: Number of classes; 0 for no classifier.
        global_pool: "avg", or "" to return the map itself if there is no classifier.
        stem_width: Channels of the stem.
        embed_dims: Channels D of each stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        reductions: k of each stage, the ratio of the side of the map to that of the keys' and values' map.
        mlp_ratio: Hidden channels of the feed-forward as a multiple of D.
        head_width: Channels of the projection.
        drop_rate: Dropout before the last layer.
        drop_path_rate: Stochastic depth rate of the last block, rising linearly up to it.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Literal["avg", ""] = "avg",
        stem_width: int = 32,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 3, 16, 3),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        mlp_ratio: float = 4.0,
        head_width: int = 1280,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.drop_rate = drop_rate
        widths = [in_chans, stem_width, stem_width, stem_width]
        self.stem = nn.Sequential()
        for number, (before, width) in enumerate(pairwise(widths)):
            convolution = nn.Conv2d(before, width, 3, stride=1 if number else 2, padding=1)
            self.stem.extend([convolution, nn.GELU(), nn.BatchNorm2d(width)])
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        stages = []
        self.feature_info = []
        for number, (dim, depth, grid) in enumerate(zip(embed_dims, depths, _grids(img_size), strict=True)):
            hidden = round(dim * mlp_ratio)
            blocks = [
                Block(dim, num_heads[number], reductions[number], hidden, grid, next(rates)) for _ in range(depth)
            ]
            stages.append(Stage(embed_dims[number - 1] if number else stem_width, dim, blocks))
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**number, "module": f"stages.{number}"})
        self.stages = nn.Sequential(*stages)
        self.projection = nn.Sequential(nn.Linear(embed_dims[-1], head_width), nn.GELU())
        self.head: nn.Module = nn.Linear(head_width, num_classes) if num_classes else nn.Identity()
        self.apply(_initialise)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size; position biases are resampled.

        Raises:
            ValueError: the size is not a multiple of 32.
        """
        stage: Any
        for stage, grid in zip(self.stages, _grids(img_size), strict=True):
            for block in stage.blocks:
                block.attn.resize(grid)
        update_model_input_size(self, img_size)

    def no_weight_decay(self) -> set[str]:
        """Names of the position biases."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers that timm tells apart for layer decay."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of blocks and recompute the rest in the backward pass."""
        stage: Any
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Literal["avg", ""] | None = None) -> None:
        """Replace the last layer by a new one."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        before: Any = self.projection[0]
        device = before.weight.device
        self.head = nn.Linear(before.out_features, num_classes, device=device) if num_classes else nn.Identity()
        self.head.apply(_initialise)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps after stages.

        Args:
            x: (B, C, H, W).
            indices: The stages, or the number of last stages; all if None.
            norm: Ignored: CMT has no final norm.
            stop_early: Run no stage after the last requested one.
            output_fmt: "NCHW" only.
            intermediates_only: Return the list without the last map.

        Returns:
            (B, D, h, w) maps; unless `intermediates_only`, the last map and the list.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt}; expected NCHW")
        taken, last = feature_take_indices(len(self.stages), indices)
        maps = []
        x = self.stem(x)
        for number, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if number in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last requested one."""
        taken, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return list(taken)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H / 32, W / 32)."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, D, h, w) -> logits, or the pooled map if `pre_logits` or without classes."""
        x = x.mean(dim=(2, 3)) if self.global_pool else x
        if pre_logits or not self.num_classes:
            return x
        return self.head(F.dropout(self.projection(x), self.drop_rate, self.training))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes), or the pooled map (B, D) without classes."""
        return self.forward_head(self.forward_features(x))


def _grids(img_size: int | tuple[int, int]) -> list[tuple[int, int]]:
    """(h, w) of each stage's map; ValueError unless the size is a multiple of 32."""
    height, width = to_2tuple(img_size)
    if height % _STRIDE or width % _STRIDE:
        raise ValueError(f"img_size is {img_size}; expected multiples of {_STRIDE}")
    return [(height // stride, width // stride) for stride in (4, 8, 16, 32)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        "cmt_s": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "pool_size": (7, 7),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "stem.0",
            "classifier": "head",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]
def cmt_s(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-S: 25.6 M parameters and 3.92 G multiply-adds at 224 px; the paper reports 25.1 M and 4.0 G.

    No single feed-forward width gives both figures. At 4 times the block's width, as in the paper's table, the
    model has 26.0 M parameters and 4.00 G multiply-adds; 3.875 times is within 2.1 % of both.
    """
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        CMT,
        "cmt_s",
        pretrained,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **{"mlp_ratio": 3.875, **kwargs},
    )
