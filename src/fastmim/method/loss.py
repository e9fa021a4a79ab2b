"""The loss: the mean error of predictions over hidden positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ERRORS: dict[str, Callable[[Tensor], Tensor]] = {"l2": torch.square, "l1": torch.abs}


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor, *, error: str = "l2") -> Tensor:
    """Mean error over hidden positions and their channels.

    Args:
        prediction: (B, K, h, w).
        target: (B, K, h, w).
        mask: (B, h, w) bool, True = hidden; at least one.
        error: "l2" (squared) or "l1" (absolute).

    Returns:
        Scalar.
    """
    errors = _ERRORS[error](prediction - target).mean(dim=1)  # (B, h, w)
    return (errors * mask).sum() / mask.sum()
