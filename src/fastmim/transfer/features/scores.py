"""Scores of frozen features: kNN accuracy, linear probe accuracy, effective rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
NEIGHBOURS = (5, 10, 20, 50, 100, 200)
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2)

_SIMILARITIES = 2**26  # in memory at a time: 256 MB


@dataclass(frozen=True)
class LabelledFeatures:
    """Features with their classes."""

    features: Tensor
    """(N, D) float32."""
    labels: Tensor
    """(N,) int64, on the same device."""

    def __len__(self) -> int:
        return len(self.labels)


def knn(
    train: LabelledFeatures, val: LabelledFeatures, *, ks: Sequence[int] = NEIGHBOURS, temperature: float = TEMPERATURE
) -> dict[int, float]:
    """Top-1 accuracy of the k nearest training images.

    Each of the k images with the highest cosine similarity s votes with weight exp(s / temperature) (Wu et al.,
    arXiv 1805.01978, section 3.4). A tie goes to the lower class.

    Args:
        ks: Numbers of neighbours, capped at the number of training images.

    Returns:
        The share of the validation images that are classified correctly, for each k.
    """
    ks = sorted({min(k, len(train)) for k in ks})
    num_classes = int(max(train.labels.max(), val.labels.max())) + 1
    gallery = F.normalize(train.features, dim=1).T  # (D, N)
    correct = dict.fromkeys(ks, 0)
    rows = max(1, _SIMILARITIES // len(train))
    for features, labels in zip(val.features.split(rows), val.labels.split(rows), strict=True):
        similarity, nearest = (F.normalize(features, dim=1) @ gallery).topk(ks[-1], dim=1)  # (rows, k), descending
        # Relative to the nearest: the same votes, without overflow.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        for k in ks:
            votes = torch.zeros(len(labels), num_classes, device=labels.device)
            votes.scatter_add_(1, train.labels[nearest[:, :k]], weight[:, :k])
            correct[k] += int((votes.argmax(dim=1) == labels).sum())
    return {k: number / len(val) for k, number in correct.items()}


def linear(
    train: LabelledFeatures,
    val: LabelledFeatures,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    batch_size: int = 1024,
    num_steps: int | None = None,
    seed: int = 0,
) -> dict[tuple[float, float], float]:
    """Top-1 accuracy of linear heads, one per learning rate and weight decay, all trained in one pass.

    Features are standardised with the training images' mean and standard deviation. Heads start at zero and are
    trained by SGD with momentum 0.9 and a cosine schedule. With SGD, scaling a head's loss scales its learning rate
    exactly, so all heads share one matrix product and one optimiser.

    Args:
        batch_size: Images per step, capped at the number of training images.
        num_steps: Steps of SGD; 10 epochs, but at least 2,000 steps, if None.
        seed: Determines the order of the images; nothing else is random.

    Returns:
        The share of the validation images that are classified correctly, for each (learning rate, weight decay);
        0 for a head that diverged.
    """
    device, num_classes = train.features.device, int(max(train.labels.max(), val.labels.max())) + 1
    mean, std = train.features.mean(dim=0), train.features.std(dim=0).clamp(min=1e-6)
    grid = [(rate, decay) for rate in learning_rates for decay in weight_decays]
    rates, decays = (torch.tensor(column, device=device) for column in zip(*grid, strict=True))  # (H,), (H,)
    width = train.features.shape[1]
    weight = torch.zeros(len(grid), num_classes, width, device=device, requires_grad=True)  # (H, classes, D)
    bias = torch.zeros(len(grid), num_classes, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=1.0, momentum=0.9)

    def logits(features: Tensor) -> Tensor:
        """(B, D) -> (B, H, classes)."""
        product = ((features - mean) / std) @ weight.flatten(0, 1).T  # (B, H * classes)
        return product.unflatten(1, (len(grid), num_classes)) + bias

    batch_size = min(batch_size, len(train))
    num_steps = num_steps or max(2000, 10 * len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for batch in _batches(len(train), batch_size, num_steps, seed):
        batch = batch.to(device)
        scores = logits(train.features[batch])
        truth = train.labels[batch][:, None].expand(-1, len(grid))  # (B, H)
        losses = F.cross_entropy(scores.transpose(1, 2), truth, reduction="none").mean(dim=0)  # (H,)
        penalties = decays / 2 * weight.square().sum(dim=(1, 2))
        optimizer.zero_grad()
        (rates * (losses + penalties)).sum().backward()
        optimizer.step()
        schedule.step()

    correct = torch.zeros(len(grid), device=device)
    with torch.no_grad():
        for features, labels in zip(val.features.split(batch_size), val.labels.split(batch_size), strict=True):
            scores = logits(features)
            correct += (scores.argmax(dim=2) == labels[:, None]).logical_and(scores.isfinite().all(dim=2)).sum(dim=0)
    return dict(zip(grid, (correct / len(val)).tolist(), strict=True))


def _batches(num_images: int, batch_size: int, num_steps: int, seed: int) -> Iterator[Tensor]:
    """Yield each step's indices: epochs of whole batches, each in an order drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    per_epoch = num_images // batch_size
    for step in range(num_steps):
        if step % per_epoch == 0:
            order = torch.randperm(num_images, generator=generator)
        start = step % per_epoch * batch_size
        yield order[start : start + batch_size]


def effective_rank(features: Tensor) -> float:
    """The effective rank of features (Roy and Vetterli, EUSIPCO 2007, definition 1).

    It is the exponential of the entropy of the centred features' singular values, normalised to sum to 1: D if the
    features vary equally in all directions, 1 if in a single one. It indicates collapse, not quality.

    Args:
        features: (N, D).

    Returns:
        A value between 1 and D; 0 if all features are equal.
    """
    # Both Gram matrices have the squared singular values as eigenvalues: take the smaller one. On the CPU, since
    # not every device supports float64.
    centred = (features - features.mean(dim=0)).double().cpu()
    gram = centred.T @ centred if len(centred) > centred.shape[1] else centred @ centred.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if singular.max() <= 1e-6 * features.abs().max():  # rounding errors only
        return 0.0
    return float(torch.special.entr(singular / singular.sum()).sum().exp())
