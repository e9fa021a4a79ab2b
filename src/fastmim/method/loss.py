"""The loss, and how much of the hidden positions a prediction explains."""

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


def explained_variance(prediction: Tensor, target: Tensor, mask: Tensor) -> float:
    """Share of the hidden positions' variance that a prediction explains, R^2 = 1 - squared error / variance.

    A loss alone does not say whether anything was learned: predicting the same mean everywhere brings it down a
    good deal, and explains nothing.

    Args:
        prediction: (B, K, h, w).
        target: (B, K, h, w).
        mask: (B, h, w) bool, True = hidden; at least one.

    Returns:
        1 for a perfect prediction, 0 for the mean of each channel over these hidden positions, below 0 for worse;
        0 where the target does not vary.
    """
    hidden = target.float().movedim(1, -1)[mask]  # (hidden positions, K)
    missed = (hidden - prediction.float().movedim(1, -1)[mask]).square().sum()
    variance = (hidden - hidden.mean(0)).square().sum()
    return (1 - missed / variance).item() if variance > 0 else 0.0


def describe_explained(share: float) -> str:
    """Say what an `explained_variance` means."""
    if share < 0.005:
        return "predictions are no better yet than the mean of the hidden blocks"
    return f"predictions explain {share:.0%} of the variance of the hidden blocks"
