"""The loss, and how much of the hidden positions a prediction explains."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def _cosine(prediction: Tensor, target: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(prediction, target, dim=1)


def _over_channels(error: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda prediction, target: error(prediction, target, reduction="none").mean(dim=1)


_ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": _over_channels(F.mse_loss),
    "l1": _over_channels(F.l1_loss),
    "smooth-l1": _over_channels(F.smooth_l1_loss),
    "cosine": _cosine,
}
"""Errors of (B, K, h, w) and (B, K, h, w), as (B, h, w)."""


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor, *, error: str = "l2") -> Tensor:
    """Mean error over positions and their channels.

    Args:
        prediction: (B, K, h, w).
        target: (B, K, h, w).
        mask: (B, h, w) bool, True where the error counts; at least one.
        error: "l2" (squared), "l1" (absolute), "smooth-l1" (squared and halved below 1, from there on absolute less a
            half: Huber's with a threshold of 1), or "cosine" (1 minus the cosine of a position's two vectors).

    Returns:
        Scalar.
    """
    errors = _ERRORS[error](prediction, target)  # (B, h, w)
    return (errors * mask).sum() / mask.sum()


def explained_variance(prediction: Tensor, target: Tensor, mask: Tensor) -> float:
    """Share of the hidden positions' variance that a prediction explains, R^2 = 1 - squared error / variance.

    A loss alone does not say whether anything was learned: predicting the same mean everywhere brings it down a
    good deal, and explains nothing.

    Args:
        prediction: (B, K, h, w).
        target: (B, K, h, w).
        mask: (B, h, w) bool, True = hidden; where nothing is hidden, every position counts.

    Returns:
        1 for a perfect prediction, 0 for the mean of each channel over these hidden positions, below 0 for worse;
        0 where the target does not vary.
    """
    counted = mask if mask.any() else ~mask
    hidden = target.float().movedim(1, -1)[counted]  # (hidden positions, K)
    missed = (hidden - prediction.float().movedim(1, -1)[counted]).square().sum()
    variance = (hidden - hidden.mean(0)).square().sum()
    return (1 - missed / variance).item() if variance > 0 else 0.0


def describe_explained(share: float) -> str:
    """Say what an `explained_variance` means."""
    if share < 0.005:
        return "predictions are no better yet than the mean of the hidden blocks"
    return f"predictions explain {share:.0%} of the variance of the hidden blocks"
