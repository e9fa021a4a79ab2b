"""Attention within windows for plain ViTs on large maps, with a few blocks that see the whole map (ViTDet)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fastmim.errors import RequestError


class Windows:
    """Windows in the attention of a plain ViT (Li et al., ViTDet, ECCV 2022, section 3).

    The map is cut into squares without overlap, and a position attends to those of its own square only. Four blocks at
    equal distances, the last among them, still see the whole map. Squares at the border are filled up with positions
    that nothing attends to. The class token and other prefix tokens are in every square, and their results averaged,
    so that one square as large as the map is the attention of the plain ViT. Weights are those of the plain ViT.

    Args:
        model: Changed in place.
        name: Its name, for messages.
        side: Positions along a side of a square.
        num_global: Blocks that see the whole map.

    Raises:
        RequestError: the model is not a plain ViT, or its attention needs to know positions (rotary embeddings).
    """

    grid: tuple[int, int] = (0, 0)
    """(h, w) of the map in the coming forward pass."""

    def __init__(self, model: nn.Module, name: str, *, side: int, num_global: int = 4) -> None:
        blocks: Any = model.blocks if isinstance(model, VisionTransformer) else ()
        if not blocks or any(type(getattr(block, "attn", None)) is not Attention for block in blocks):
            raise RequestError(
                f"window is {side}, and {name} is not a plain ViT with position embeddings; expected one, such as "
                f"vit_base_patch16_224: leave out window"
            )
        self.side = side
        num = len(blocks)
        whole = {round((n + 1) * num / num_global) - 1 for n in range(num_global)}
        for index, block in enumerate(blocks):
            if index not in whole:
                block.attn.forward = partial(self._attend, block.attn.forward)

    def _attend(self, attend: Any, x: Tensor, *args: Any, **more: Any) -> Tensor:
        """(B, P + h * w, D) tokens -> the same, attending within squares."""
        height, width = self.grid
        num_prefix = x.shape[1] - height * width
        prefix, cells = x[:, :num_prefix], x[:, num_prefix:].unflatten(1, (height, width))
        squares = self._cut(cells)  # (B, n, side * side, D)
        num = squares.shape[1]
        tokens = torch.cat([prefix[:, None].expand(-1, num, -1, -1), squares], dim=2).flatten(0, 1)
        outside = self._outside(x)
        if outside is not None:  # (n, side * side) -> (B * n, 1, 1, P + side * side), added to the attention's logits
            bias = x.new_zeros(outside.shape).masked_fill_(outside, -torch.inf)
            more["attn_mask"] = F.pad(bias, (num_prefix, 0)).repeat(len(x), 1)[:, None, None]
        tokens = attend(tokens, *args, **more).unflatten(0, (-1, num))
        prefix, squares = tokens[:, :, :num_prefix].mean(dim=1), tokens[:, :, num_prefix:]
        return torch.cat([prefix, self._join(squares).flatten(1, 2)], dim=1)

    def _cut(self, cells: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, n, side * side, D), filled up with zeros."""
        side, (height, width) = self.side, self.grid
        cells = F.pad(cells, (0, 0, 0, -width % side, 0, -height % side))
        return cells.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _join(self, squares: Tensor) -> Tensor:
        """Undo `_cut`."""
        side, (height, width) = self.side, self.grid
        cells = squares.unflatten(2, (side, side)).unflatten(1, (-1, -(-width // side)))
        return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]

    def _outside(self, x: Tensor) -> Tensor | None:
        """(n, side * side) bool, True where a square lies outside of the map; None if none does."""
        if not (self.grid[0] % self.side or self.grid[1] % self.side):
            return None
        inside = torch.ones(1, *self.grid, 1, dtype=torch.bool, device=x.device)
        return ~self._cut(inside)[0, ..., 0]
