"""From the encoder's features to the target's channels: a light transformer, or one linear map.

Shapes: B batch, D encoder width, h grid side, n visible positions, K target channels per position.
"""

from __future__ import annotations

import torch
from timm.layers import build_sincos2d_pos_embed, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class Decoder(nn.Module):
    """A light transformer from backbone features to target channels (FastMIM section 3.3).

    Linear D -> width, `depth` pre-norm blocks with width/32 heads, LayerNorm, Linear width -> K. It needs
    no position embedding: hidden positions went through the backbone like all others.

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
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # Targets are small (a HOG bin is 0.26 on average): start near zero, not at unit variance.
        trunc_normal_(self.head.weight, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, h) -> (B, K, h, h)."""
        tokens = self.embed(features.flatten(2).transpose(1, 2))  # (B, h*h, width)
        return self._predict(tokens, features.shape[-1])

    def _predict(self, tokens: Tensor, grid: int) -> Tensor:
        """(B, h*h, width) -> (B, K, h, h)."""
        tokens = self.head(self.norm(self.blocks(tokens)))  # (B, h*h, K)
        return tokens.transpose(1, 2).unflatten(2, (grid, grid))

    def extra_repr(self) -> str:
        """What `print` shows, and the command line takes."""
        return f"{self.width}x{self.depth}"


class FillingDecoder(Decoder):
    """The transformer for an encoder that saw the visible positions only (MAE, He et al., CVPR 2022, section 3).

    A learnable mask token stands at every hidden position, and fixed 2-D sine-cosine position embeddings tell
    the positions apart.
    """

    def __init__(self, in_width: int, width: int, depth: int, out_channels: int) -> None:
        super().__init__(in_width, width, depth, out_channels)
        self.mask_token = nn.Parameter(trunc_normal_(torch.empty(width), std=0.02))

    def fill(self, tokens: Tensor, visible: Tensor, grid: int) -> Tensor:
        """Predict every position from the visible ones.

        Args:
            tokens: (B, n, D).
            visible: (B, n) int64, the positions of the tokens in row-major order.
            grid: h.

        Returns:
            (B, K, h, h).
        """
        tokens = self.embed(tokens)
        index = visible[..., None].expand(-1, -1, self.width)  # (B, n, width)
        everywhere = self.mask_token.to(tokens.dtype).expand(len(tokens), grid * grid, -1)
        positions = build_sincos2d_pos_embed(
            [grid, grid], self.width, interleave_sin_cos=True, dtype=tokens.dtype, device=tokens.device
        )
        return self._predict(everywhere.scatter(1, index, tokens) + positions, grid)


class LinearDecoder(nn.Module):
    """One linear map at each position: MaskFeat's head, and SimMIM's 1x1 convolution with pixel shuffle.

    The targets come regrouped as `pixel_unshuffle` does, so nothing is left to shuffle.

    Args:
        in_width: D.
        out_channels: K.
    """

    def __init__(self, in_width: int, out_channels: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(in_width, out_channels, kernel_size=1)
        trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, h) -> (B, K, h, h)."""
        return self.head(features)

    def extra_repr(self) -> str:
        """What `print` shows, and the command line takes."""
        return "linear"


def decoder_size(encoder_width: int, stride: int) -> tuple[int, int]:
    """(width, depth) of the decoder that matches an encoder.

    The paper's decoders are 256x1 for ViT-B (D 768, stride 16) and 256x4 for Swin-B, PVTv2-B2 and CMT-S
    (stride 32, a quarter of the positions), and it finds that a decoder should match the network's size
    (section 4.3). So: half the encoder's width in multiples of 32, between 64 and 256; one block below
    stride 32, four from there on.
    """
    width = max(64, min(256, encoder_width // 2 // 32 * 32))
    return width, 1 if stride < 32 else 4
