"""Several targets at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.method.targets import Target


class Joint(nn.Module):
    """Several targets at once. The decoder's last layer has a head for each, and their losses are added, each with
    weight 1.

    The weights are fixed: with a teacher, small changes of a weight cost much (arXiv 2603.29009), and nobody should
    have to tune them.

    Args:
        parts: The targets, in the order of the channels; pictures show the first.

    Example:
        >>> target = fastmim.Joint(fastmim.HOG(), fastmim.Teacher("runs/photos"))
        >>> model = fastmim.MIM("vit_tiny_patch16_224", img_size=128, target=target)
    """

    def __init__(self, *parts: Target) -> None:
        super().__init__()
        self.parts = parts
        for number, part in enumerate(parts):
            if isinstance(part, nn.Module):
                self.add_module(str(number), part)
        self.cell = max(part.cell for part in parts)

    @property
    def name(self) -> str:
        """The names of the parts, such as "hog+teacher"."""
        return "+".join(getattr(part, "name", type(part).__name__) for part in self.parts)

    def for_stride(self, stride: int) -> Joint:
        """The parts for a backbone of this stride; its cell is the stride."""
        fitted = Joint(*(part.for_stride(stride) for part in self.parts))
        fitted.cell = stride
        return fitted

    def num_channels(self, in_chans: int) -> int:
        """Target channels of one cell: those of all parts."""
        return sum(part.num_channels(in_chans) * (self.cell // part.cell) ** 2 for part in self.parts)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, `num_channels(C)`, H / `cell`, W / `cell`) float32, part after part."""
        return torch.cat([F.pixel_unshuffle(part.forward(images), self.cell // part.cell) for part in self.parts], 1)
