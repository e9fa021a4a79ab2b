"""CMT-S (Guo et al., CVPR 2022), which timm lacks: convolutions and attention in every block.

Importing `fastmim.backbone` registers it with timm, so that `timm.create_model("cmt_s")` and weights files of it work.
Written from the paper (arXiv 2107.06263, section 3 and table 1) and, where they differ, to the shapes and values of
FastMIM's network: the widths of the feed-forward, the norms of keys and values, one table of biases for each stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerNorm2d, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastmim.backbone.attention import takes_plain

_STRIDE = 32


class Attention(nn.Module):
    """Attention from all pixels of a map to a k times smaller one, with a given bias for each pair of the two.

    Args:
        dim: Channels D.
        num_heads: N.
        reduction: k, kernel size and stride of the convolution that makes the smaller map.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.reduce = nn.Sequential()
        if reduction > 1:
            self.reduce.extend([nn.Conv2d(dim, dim, reduction, reduction, groups=dim), nn.BatchNorm2d(dim)])
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, D, h, w) and (N, h * w, h * w / k^2) -> (B, D, h, w)."""
        B, D, h, w = x.shape
        heads = (B, -1, self.num_heads, D // self.num_heads)
        reduced = self.reduce(x).flatten(2).transpose(1, 2)  # (B, h * w / k^2, D)
        query = self.query(x.flatten(2).transpose(1, 2))  # (B, h * w, D)
        q, k, v = (y.view(heads).transpose(1, 2) for y in (query, self.key(reduced), self.value(reduced)))
        y = _attend(q, k, v, bias.to(q.dtype))
        return self.proj(y.transpose(1, 2).flatten(2)).transpose(1, 2).view(B, D, h, w)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention with a bias, in the faster of its forms; (B, N, queries or keys, D / N) each."""
    pairs = q.shape[2] * k.shape[2]
    if torch.compiler.is_compiling() or not takes_plain(pairs, device=q.device.type, dtype=q.dtype, biased=True):
        bias = bias if torch.is_grad_enabled() else bias.detach()  # what needs a gradient sends it to a slow form
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return (q * q.shape[-1] ** -0.5 @ k.mT + bias).softmax(-1).to(v.dtype) @ v


class FeedForward(nn.Module):
    """Inverted residual feed-forward: D -> H, a depthwise 3x3 with a shortcut, H -> D."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden))
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = nn.Sequential(nn.GELU(), nn.BatchNorm2d(hidden))
        self.project = nn.Sequential(nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> the same."""
        x = self.expand(x)
        return self.project(self.norm(x + self.depthwise(x)))


class Block(nn.Module):
    """Local perception (depthwise 3x3), attention and feed-forward, each with a shortcut."""

    def __init__(self, dim: int, num_heads: int, reduction: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = LayerNorm2d(dim)
        self.attn = Attention(dim, num_heads, reduction)
        self.norm2 = LayerNorm2d(dim)
        self.mlp = FeedForward(dim, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, D, h, w) and the attention's bias -> (B, D, h, w)."""
        x = x + self.local(x)
        x = x + self.drop_path(self.attn(self.norm1(x), bias))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """A 2x2 convolution that halves the map, then blocks, which share one table of position biases.

    Args:
        in_dim: Channels D' of the map before.
        dim: Channels D.
        num_heads: N.
        reduction: k of the blocks' attention.
        grid: (h, w) of the stage's map, multiples of k.
        blocks: The blocks.
    """

    def __init__(
        self, in_dim: int, dim: int, num_heads: int, reduction: int, grid: tuple[int, int], blocks: Sequence[Block]
    ) -> None:
        super().__init__()
        self.grid, self.reduction = grid, reduction
        self.downsample = nn.Sequential(nn.Conv2d(in_dim, dim, 2, stride=2), LayerNorm2d(dim, eps=1e-5))
        num_queries = grid[0] * grid[1]
        self.position_bias = nn.Parameter(torch.randn(num_heads, num_queries, num_queries // reduction**2))
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, D', 2h, 2w) -> (B, D, h, w)."""
        x = self.downsample(x)
        for block in self.blocks:
            if self.grad_checkpointing:
                x = checkpoint(block, x, self.position_bias, use_reentrant=False)
            else:
                x = block(x, self.position_bias)
        return x

    def resize(self, grid: tuple[int, int]) -> None:
        """Take maps of another size: the biases are interpolated over the map of the queries and that of the keys.

        FastMIM's code interpolates over the two flattened axes of the table, which shifts columns against each other.
        """
        if grid == self.grid:
            return
        (height, width), k = self.grid, self.reduction
        table = self.position_bias.detach().unflatten(1, (height, width))  # (N, h, w, keys)
        table = F.interpolate(table.movedim(3, 1), grid, mode="bicubic", align_corners=False)  # (N, keys, h', w')
        table = table.flatten(2).transpose(1, 2).unflatten(2, (height // k, width // k))  # (N, h' * w', h / k, w / k)
        table = F.interpolate(table, (grid[0] // k, grid[1] // k), mode="bicubic", align_corners=False)
        self.position_bias = nn.Parameter(table.flatten(2), self.position_bias.requires_grad)
        self.grid = grid


class CMT(nn.Module):
    """CMT with timm's interface.

    The classifier is a projection of the map, the mean over it and one linear layer. The projection exists even without
    classes, so that weights files include it, but the output is then the pooled map itself. Pre-training puts a final
    norm on the map, which the classifier does not use.

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
        drop_rate: float = 0.1,
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
            heads, k = num_heads[number], reductions[number]
            blocks = [Block(dim, heads, k, hidden, next(rates)) for _ in range(depth)]
            stages.append(Stage(embed_dims[number - 1] if number else stem_width, dim, heads, k, grid, blocks))
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**number, "module": f"stages.{number}"})
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = LayerNorm2d(embed_dims[-1])
        self.projection = nn.Sequential(nn.Conv2d(embed_dims[-1], head_width, 1), nn.BatchNorm2d(head_width), nn.SiLU())
        self.head: nn.Module = nn.Linear(head_width, num_classes) if num_classes else nn.Identity()
        self.apply(_initialise)
        self.norm.requires_grad_(not num_classes)  # the classifier does not use it

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size; position biases are resampled.

        Raises:
            ValueError: the size is not a multiple of 32.
        """
        stage: Any
        for stage, grid in zip(self.stages, _grids(img_size), strict=True):
            stage.resize(grid)
        update_model_input_size(self, img_size)

    def no_weight_decay(self) -> set[str]:
        """Names of the position biases, which FastMIM's code decays."""
        return {name for name, _ in self.named_parameters() if name.endswith("position_bias")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers that timm tells apart for layer decay."""
        blocks = [(r"^stages\.(\d+)\.(?:downsample|position_bias)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
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
        self.head = nn.Linear(before.out_channels, num_classes, device=device) if num_classes else nn.Identity()
        self.head.apply(_initialise)
        self.norm.requires_grad_(not num_classes)

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
            norm: Apply the final norm to the last stage's map in the list.
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
                maps.append(self.norm(x) if norm and number == len(self.stages) - 1 else x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last requested one."""
        taken, last = feature_take_indices(len(self.stages), indices)
        if prune_norm or last < len(self.stages) - 1:
            self.norm = nn.Identity()
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return list(taken)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H / 32, W / 32), without the final norm."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, D, h, w) -> logits, or the pooled map if `pre_logits` or without classes."""
        if pre_logits or not self.num_classes:
            return x.mean(dim=(2, 3)) if self.global_pool else x
        pooled = self.projection(x).mean(dim=(2, 3))
        return self.head(F.dropout(pooled, self.drop_rate, self.training))

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
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
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
    """CMT-S as FastMIM's code builds it: 26.26 M parameters, 4.03 G multiply-adds at 224 px (paper: 25.1 M, 4.0 G)."""
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        CMT,
        "cmt_s",
        pretrained,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )
