"""Heads that turn maps into logits for each pixel: UPerNet, the auxiliary FCN, and a linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_POOLED = (1, 2, 3, 6)  # sides of the pooled maps
_DROPOUT = 0.1


class UPerHead(nn.Module):
    """UPerNet (Xiao et al., ECCV 2018): pyramid pooling of the coarsest map, then a feature pyramid, all levels fused.

    Args:
        widths: Channels of the maps, finest first.
        channels: Channels of all layers.
        num_classes: C.
    """

    def __init__(self, widths: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(_convolution(widths[-1], channels, 1) for _ in _POOLED)
        self.coarsest = _convolution(widths[-1] + len(_POOLED) * channels, channels, 3)
        self.laterals = nn.ModuleList(_convolution(width, channels, 1) for width in widths[:-1])
        self.smoothed = nn.ModuleList(_convolution(channels, channels, 3) for _ in widths[:-1])
        self.fused = _convolution(len(widths) * channels, channels, 3)
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, widths[i], h_i, w_i), finest first -> logits (B, C, h_0, w_0)."""
        coarsest = maps[-1]
        pooled = [
            enlarge(layer(F.adaptive_avg_pool2d(coarsest, side)), coarsest)
            for side, layer in zip(_POOLED, self.pooled, strict=True)
        ]
        above = self.coarsest(torch.cat([coarsest, *pooled], dim=1))
        levels = [above]
        for features, lateral in zip(reversed(maps[:-1]), reversed(self.laterals), strict=True):
            own = lateral(features)
            above = own + enlarge(above, own)
            levels.insert(0, above)
        smoothed = [layer(level) for layer, level in zip(self.smoothed, levels[:-1], strict=True)]
        joined = torch.cat([enlarge(level, maps[0]) for level in (*smoothed, levels[-1])], dim=1)
        return self.classify(self.dropout(self.fused(joined)))


class FCNHead(nn.Module):
    """One convolution on the map of stride 16: the auxiliary head beside UPerNet, for training only."""

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.convolution = _convolution(widths[2], channels, 3)
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """As `UPerHead.forward`, of the third map only."""
        return self.classify(self.dropout(self.convolution(maps[2])))


class LinearHead(nn.Module):
    """A linear layer on the normalised features of all maps, each read at its own resolution: a ruler for features.

    Logits are linear in the features at a pixel (after a normalisation over channels), so they are the sum of the maps'
    own.

    Args:
        widths: Channels of the maps, finest first.
        num_classes: C.
    """

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in widths)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, widths[i], h_i, w_i), finest first -> logits (B, C, h_0, w_0)."""
        parts = []
        for features, layer in zip(maps, self.layers, strict=True):
            normalised = F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
            parts.append(enlarge(layer(normalised), maps[0]))
        return torch.stack(parts).sum(dim=0)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Bring a map to the height and width of another, by bilinear interpolation."""
    sides = like.shape[-2:]
    return x if x.shape[-2:] == sides else F.interpolate(x, sides, mode="bilinear", align_corners=False)


def _convolution(width: int, channels: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, channels, side, padding=side // 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )
