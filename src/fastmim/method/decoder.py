"""Decoders, from encoder features to target channels: a light transformer, or one linear map.

Shapes: B batch, D encoder width, h x w the encoder's grid, n visible positions, P prefix tokens (class token,
registers; 0 for most backbones), K target channels per position.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fastmim.backbone.initial import sincos_table
from fastmim.errors import RequestError


class _Transformer(nn.Module):
    """Linear D -> width, `depth` pre-norm blocks with width/32 heads, LayerNorm, Linear width -> K.

    Args:
        in_width: D.
        width: Multiple of 32.
        depth: Number of blocks.
        out_channels: K.
    """

    def __init__(self, in_width: int, width: int, depth: int, out_channels: int) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        self.embed = nn.Linear(in_width, width)
        self.blocks = nn.Sequential(*(Block(width, num_heads=width // 32, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)  # that of the blocks
        self.head = nn.Linear(width, out_channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # Targets are small (a HOG bin is 0.26 on average): start near zero, not at unit variance.
        trunc_normal_(self.head.weight, std=0.02)

    def _predict(self, tokens: Tensor, prefix: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h * w, width) and (B, P, width) -> (B, K, h, w)."""
        tokens = self.blocks(torch.cat([prefix, tokens], dim=1))  # positions attend to the prefix too
        tokens = self.head(self.norm(tokens[:, prefix.shape[1] :]))  # (B, h * w, K)
        return tokens.transpose(1, 2).unflatten(2, grid)

    def extra_repr(self) -> str:
        """The size in the form that `--decoder` takes."""
        return f"{self.width}x{self.depth}"


class Decoder(_Transformer):
    """The decoder of FastMIM (section 3.3), for an encoder that saw every position, hidden ones painted over.

    It needs no position embedding, because hidden positions went through the backbone like all others.
    """

    def forward(self, features: Tensor, prefix: Tensor) -> Tensor:
        """(B, D, h, w) and (B, P, D) -> (B, K, h, w)."""
        h, w = features.shape[-2:]
        tokens = self.embed(features.flatten(2).transpose(1, 2))  # (B, h * w, width)
        return self._predict(tokens, self.embed(prefix), (h, w))


class FillingDecoder(_Transformer):
    """The decoder of MAE (He et al., CVPR 2022, section 3), for an encoder that saw only the visible positions.

    A learnable mask token fills every hidden position, and fixed 2-D sine-cosine position embeddings tell
    the positions apart.
    """

    def __init__(self, in_width: int, width: int, depth: int, out_channels: int) -> None:
        super().__init__(in_width, width, depth, out_channels)
        self.mask_token = nn.Parameter(trunc_normal_(torch.empty(width), std=0.02))

    def forward(self, tokens: Tensor, prefix: Tensor, visible: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predict every position from the visible ones and the prefix tokens, which have no position.

        Args:
            tokens: (B, n, D).
            prefix: (B, P, D).
            visible: (B, n) int64, the positions of the tokens in row-major order.
            grid: (h, w).

        Returns:
            (B, K, h, w).
        """
        tokens, prefix = self.embed(tokens), self.embed(prefix)
        index = visible[..., None].expand(-1, -1, self.width)  # (B, n, width)
        everywhere = self.mask_token.to(tokens.dtype).expand(len(tokens), grid[0] * grid[1], -1)
        positions = sincos_table(grid, self.width, dtype=tokens.dtype, device=tokens.device)
        return self._predict(everywhere.scatter(1, index, tokens) + positions, prefix, grid)


class LinearDecoder(nn.Module):
    """One linear map at each position: MaskFeat's head, and SimMIM's 1x1 convolution with pixel shuffle.

    Prefix tokens are not used. `MIM` regroups the target as `pixel_unshuffle` does, so nothing is left to shuffle.

    Args:
        in_width: D.
        out_channels: K.
    """

    def __init__(self, in_width: int, out_channels: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(in_width, out_channels, kernel_size=1)
        trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, prefix: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, K, h, w)."""
        return self.head(features)

    def extra_repr(self) -> str:
        """The size in the form that `--decoder` takes."""
        return "linear"


def decoder_size(encoder_width: int, stride: int) -> tuple[int, int]:
    """(width, depth) of the transformer that matches an encoder.

    The paper's decoders are 256x1 for ViT-B (D 768, stride 16) and 256x4 for Swin-B, PVTv2-B2 and CMT-S
    (stride 32, a quarter of the positions), and it finds that a decoder should match the network's size
    (section 4.3). The rule drawn from this: half the encoder's width in multiples of 32, between 64 and 256;
    one block below stride 32, four from there on.
    """
    width = max(64, min(256, encoder_width // 2 // 32 * 32))
    return width, 1 if stride < 32 else 4


def build_decoder(
    size: Literal["auto", "linear"] | tuple[int, int], *, in_width: int, stride: int, out_channels: int, fills: bool
) -> nn.Module:
    """The decoder for an encoder and a target.

    Args:
        size: (width, depth) of a transformer, "auto" for `decoder_size`, or "linear".
        in_width: D.
        stride: Pixels of the image along a side of a position.
        out_channels: K.
        fills: Whether the encoder sees only the visible positions.

    Raises:
        RequestError: A linear decoder would have to fill in dropped tokens.
    """
    if size == "linear":
        if fills:
            raise RequestError(
                "decoder is 'linear', which cannot fill in dropped tokens; expected a transformer such as 256x1, "
                "or masking in-place"
            )
        return LinearDecoder(in_width, out_channels)
    width, depth = decoder_size(in_width, stride) if size == "auto" else size
    return (FillingDecoder if fills else Decoder)(in_width, width, depth, out_channels)
