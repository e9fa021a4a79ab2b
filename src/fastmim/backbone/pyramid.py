"""A pyramid of maps at strides 4, 8, 16 and 32, from any timm model: what detection and segmentation are built on."""

from __future__ import annotations

import math
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from fastmim.backbone.multiscale import STRIDES, MultiScale


class Pyramid(nn.Module):
    """Images of any height and width -> maps at strides 4, 8, 16 and 32, each with a LayerNorm of its own.

    A level is the model's last map of that stride. Where the model has none, its finest map is enlarged by transposed
    convolutions (each followed by LayerNorm and GELU, but the last), and its coarsest reduced by max pooling. So a
    plain ViT's last map gives the simple pyramid of ViTDet (Li et al., ECCV 2022, section 3), where each enlargement
    halves the channels. With four `depths`, each level comes from a map of its own, and the channels are kept, as in
    the UPerNets of BEiT and MAE, whose batch norms are LayerNorms here.

    Args:
        trunk: The model, whose maps have four strides, or one at one or four depths.
    """

    strides: tuple[int, ...] = STRIDES
    widths: tuple[int, ...]
    """Channels of the levels, finest first."""

    def __init__(self, trunk: MultiScale) -> None:
        super().__init__()
        self.trunk = trunk
        deep = len(trunk.strides) == len(STRIDES) and len(set(trunk.strides)) == 1
        self._sources = list(range(len(STRIDES))) if deep else [_nearest(trunk.strides, stride) for stride in STRIDES]
        self.levels = nn.ModuleList()
        widths = []
        for stride, source in zip(STRIDES, self._sources, strict=True):
            doublings = int(math.log2(trunk.strides[source] / stride))
            layers, width = _rescaling(trunk.widths[source], doublings, keeps_width=deep)
            self.levels.append(nn.Sequential(*layers, LayerNorm2d(width)))
            widths.append(width)
        self.widths = tuple(widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) normalised images -> four maps (B, widths[i], ceil(H / strides[i]), ceil(W / strides[i]))."""
        height, width = images.shape[-2:]
        maps = self.trunk(images)
        found = []
        for level, source, stride in zip(self.levels, self._sources, STRIDES, strict=True):
            found.append(level(maps[source])[..., : -(-height // stride), : -(-width // stride)])
        return found

    def parameter_groups(self, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW: the model's as in `MultiScale.parameter_groups`, those of the levels undamped."""
        groups = self.trunk.parameter_groups(weight_decay=weight_decay, layer_decay=layer_decay)
        return [*groups, *undamped(self.levels, weight_decay=weight_decay)]


def undamped(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW of the layers that come after the backbone; vectors get no weight decay."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = ((matrices, weight_decay), (vectors, 0.0))
    return [{"params": params, "weight_decay": decay, "lr_scale": 1.0} for params, decay in groups if params]


def _nearest(strides: tuple[int, ...], stride: int) -> int:
    """The position of the last map that is not coarser than `stride`, or else of the finest."""
    finer = [index for index, found in enumerate(strides) if found <= stride]
    return finer[-1] if finer else strides.index(min(strides))


def _rescaling(width: int, doublings: int, *, keeps_width: bool) -> tuple[list[nn.Module], int]:
    """Layers that enlarge a map by 2 ** doublings, or reduce it if that is below 1, and the channels of the result."""
    layers: list[nn.Module] = [nn.MaxPool2d(2, 2, ceil_mode=True) for _ in range(-doublings)]
    for number in range(doublings):
        if number:
            layers += [LayerNorm2d(width), nn.GELU()]
        narrower = width if keeps_width else max(1, width // 2)
        layers.append(nn.ConvTranspose2d(width, narrower, 2, 2))
        width = narrower
    return layers, width
