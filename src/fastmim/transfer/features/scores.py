"""Scores of frozen features: kNN accuracy, linear probe accuracy, effective rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
NEIGHBOURS = (5, 10, 20, 50, 100, 200)
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2)
RUNGS = (0.15, 0.5)
"""Shares of the steps after which the better half of the linear heads goes on."""

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
    """Top-1 accuracy of the k nearest training images, for each k; see `knn_correct`."""
    correct = knn_correct(train, val, ks=ks, temperature=temperature)
    return {k: flags.sum().item() / len(val) for k, flags in correct.items()}


def knn_correct(
    train: LabelledFeatures, val: LabelledFeatures, *, ks: Sequence[int] = NEIGHBOURS, temperature: float = TEMPERATURE
) -> dict[int, Tensor]:
    """Classify by the k nearest training images.

    Each of the k images with the highest cosine similarity s votes with weight exp(s / temperature) (Wu et al.,
    arXiv 1805.01978, section 3.4). A tie goes to the lower class.

    Args:
        ks: Numbers of neighbours, capped at the number of training images.

    Returns:
        For each k, (N,) bool: whether a validation image is classified correctly.
    """
    ks = sorted({min(k, len(train)) for k in ks})
    num_classes = int(max(train.labels.max(), val.labels.max())) + 1
    gallery = F.normalize(train.features, dim=1).T  # (D, N)
    correct: dict[int, list[Tensor]] = {k: [] for k in ks}
    rows = max(1, _SIMILARITIES // len(train))
    for features, labels in zip(val.features.split(rows), val.labels.split(rows), strict=True):
        similarity, nearest = (F.normalize(features, dim=1) @ gallery).topk(ks[-1], dim=1)  # (rows, k), descending
        # Relative to the nearest: the same votes, without overflow.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        for k in ks:
            votes = torch.zeros(len(labels), num_classes, device=labels.device)
            votes.scatter_add_(1, train.labels[nearest[:, :k]], weight[:, :k])
            correct[k].append(votes.argmax(dim=1) == labels)
    return {k: torch.cat(flags) for k, flags in correct.items()}


def linear(
    train: LabelledFeatures,
    val: LabelledFeatures,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    batch_size: int = 1024,
    num_steps: int | None = None,
    seed: int = 0,
    bf16: bool = False,
    rungs: Sequence[float] = RUNGS,
) -> dict[tuple[float, float], float]:
    """Top-1 accuracy of the linear heads that are trained to the end, by learning rate and weight decay.

    See `linear_correct`.
    """
    correct = linear_correct(
        train,
        val,
        learning_rates=learning_rates,
        weight_decays=weight_decays,
        batch_size=batch_size,
        num_steps=num_steps,
        seed=seed,
        bf16=bf16,
        rungs=rungs,
    )
    return {head: flags.sum().item() / len(val) for head, flags in correct.items()}


def linear_correct(
    train: LabelledFeatures,
    val: LabelledFeatures,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    batch_size: int = 1024,
    num_steps: int | None = None,
    seed: int = 0,
    bf16: bool = False,
    rungs: Sequence[float] = RUNGS,
) -> dict[tuple[float, float], Tensor]:
    """Classify by linear heads, one per learning rate and weight decay, all trained in one pass.

    Features are standardised with the training images' mean and standard deviation. Heads start at zero and are
    trained by SGD with momentum 0.9 and a cosine schedule. With SGD, scaling a head's loss scales its learning rate
    exactly, so all heads share one matrix product and one optimiser.

    At each of the `rungs` only the half of the heads that is better on the validation images goes on (successive
    halving; Jamieson and Talwalkar, arXiv 1502.07943). Heads are compared by running means of their weights, because a
    rate that has not fallen yet hides how good those with high ones will be. But for rounding, the accuracy of those
    that reach the end is the same as without the choice; that of the others is not known.

    Args:
        batch_size: Images per step, capped at the number of training images.
        num_steps: Steps of SGD; 10 epochs, but at least 2,000 steps, if None.
        seed: Determines the order of the images; nothing else is random.
        bf16: Multiply in bfloat16 while training. The heads themselves and the evaluation are in float32.
        rungs: Shares of the steps; none trains all heads to the end.

    Returns:
        For each (learning rate, weight decay) that reaches the end, (N,) bool: whether a validation image is classified
        correctly; no image by a head that diverged.
    """
    device, num_classes = train.features.device, int(max(train.labels.max(), val.labels.max())) + 1
    mean, std = train.features.mean(dim=0), train.features.std(dim=0).clamp(min=1e-6)
    grid = [(rate, decay) for rate in learning_rates for decay in weight_decays]

    def inputs(features: Tensor) -> Tensor:
        """(B, D) -> (B, D + 1), standardised, with a last feature of 1 for the bias."""
        return F.pad((features - mean) / std, (0, 1), value=1.0)

    batch_size = min(batch_size, len(train))
    num_steps = num_steps or max(2000, 10 * len(train) // batch_size)
    heads = _Heads(grid, num_classes, train.features.shape[1], device, torch.bfloat16 if bf16 else torch.float32)
    choices = [max(1, round(share * num_steps)) for share in rungs]
    mean_weight = torch.zeros_like(heads.weight)
    with torch.no_grad():
        for step, batch in enumerate(_batches(len(train), batch_size, num_steps, seed)):
            batch, rate = batch.to(device), (1 + math.cos(math.pi * step / num_steps)) / 2
            heads.train(inputs(train.features[batch]), train.labels[batch], rate=rate)
            if step < max(choices, default=0):
                mean_weight.lerp_(heads.weight, 9 / (10 + step))  # of about the last ninth of the steps
            if step + 1 in choices:
                chosen = _better_half(_classified(mean_weight, val, inputs, batch_size))
                heads.keep(chosen)
                mean_weight, grid = mean_weight[chosen], [grid[number] for number in chosen]
        return dict(zip(grid, _classified(heads.weight, val, inputs, batch_size).unbind(), strict=True))


def _classified(weight: Tensor, val: LabelledFeatures, inputs: Callable[[Tensor], Tensor], batch_size: int) -> Tensor:
    """(H, classes, D + 1) -> (H, N) bool: whether a head classifies an image correctly."""
    correct = []
    for features, labels in zip(val.features.split(batch_size), val.labels.split(batch_size), strict=True):
        found = weight @ inputs(features).T  # (H, classes, B)
        correct.append((found.argmax(dim=1) == labels) & found.isfinite().all(dim=1))  # (H, B)
    return torch.cat(correct, 1)


def _better_half(correct: Tensor) -> list[int]:
    """Of (H, N) flags, the half of the rows, rounded up, with the most that are set, in ascending order."""
    order = correct.sum(1).argsort(descending=True, stable=True)
    return sorted(order[: (len(order) + 1) // 2].tolist())


class _Heads:
    """Linear heads that are trained together by SGD with momentum 0.9, on the mean cross-entropy.

    The gradients are written out, since autograd would make several more passes over all heads' scores.

    Args:
        grid: (learning rate, weight decay) of each of the H heads.
        num_classes: C.
        width: D.
        device: Where they are.
        dtype: Of the matrix products.
    """

    def __init__(
        self, grid: list[tuple[float, float]], num_classes: int, width: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.weight = torch.zeros(len(grid), num_classes, width + 1, device=device)
        """(H, C, D + 1), the last column being the bias, which does not decay."""
        self._velocity, self._dtype = torch.zeros_like(self.weight), dtype
        rates, decays = torch.tensor(grid, device=device).T[:, :, None, None]  # (H, 1, 1)
        decaying = torch.ones(width + 1, device=device)
        decaying[-1] = 0.0
        self._rates, self._decays = rates, rates * decays * decaying  # (H, 1, 1), (H, 1, D + 1)

    def keep(self, chosen: list[int]) -> None:
        """Go on with some of the heads."""
        self.weight, self._velocity = self.weight[chosen], self._velocity[chosen]
        self._rates, self._decays = self._rates[chosen], self._decays[chosen]

    def train(self, x: Tensor, labels: Tensor, *, rate: float) -> None:
        """Make a step on (B, D + 1) inputs with (B,) labels; `rate` is the schedule's share of the learning rates."""
        num_classes, narrow = self.weight.shape[1], x.to(self._dtype)
        scores = self.weight.to(self._dtype).flatten(0, 1) @ narrow.T  # (H * C, B): softmax runs along the images
        probabilities = scores.unflatten(0, (-1, num_classes)).softmax(dim=1)
        gradient = (probabilities.flatten(0, 1) @ narrow).view_as(self.weight).float()
        # Minus the one-hot labels' share, which is the same for all heads.
        gradient -= F.one_hot(labels, num_classes).to(x.dtype).T @ x
        self._velocity.mul_(0.9).addcmul_(gradient, self._rates / len(x)).addcmul_(self.weight, self._decays)
        self.weight.sub_(self._velocity, alpha=rate)


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
