"""Whether a network got better: its scores before and after on the same labelled images, and what they can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmim.data.labelled import Labelled
from fastmim.errors import RunError
from fastmim.method.mim import MIM
from fastmim.transfer.features import online_probe, scores

NUM_DRAWS = 2000
"""Resamplings of the validation images."""
_LINEAR = {"learning_rates": (0.1,), "weight_decays": (1e-4,), "num_steps": 500}
"""The quick linear probe: one setting, so that nothing is chosen by the images that judge."""


@dataclass(frozen=True)
class Scores:
    """A network's scores on labelled images."""

    knn: Tensor
    """(N,) bool: whether the nearest neighbours classify a validation image correctly."""
    linear: Tensor
    """(N,) bool: whether a linear probe does."""
    loss: float
    """Mean loss over the validation images; before the first step with an untrained decoder."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types, an image a character."""
        flags = {name: "".join("01"[flag] for flag in getattr(self, name).tolist()) for name in ("knn", "linear")}
        tops = {f"{name}_top1": getattr(self, name).float().mean().item() for name in ("knn", "linear")}
        return {**tops, "held_out_loss": self.loss, "correct": flags}

    @staticmethod
    def from_json(content: Any) -> Scores:
        """Undo `to_json`.

        Raises:
            RunError: it is something else.
        """
        try:
            knn, linear = (
                torch.tensor([{"0": False, "1": True}[flag] for flag in content["correct"][name]])
                for name in ("knn", "linear")
            )
            return Scores(knn, linear, float(content["held_out_loss"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"adaptation.json does not hold the scores before the first step ({error}); restore it, or start over "
                f"with --overwrite"
            ) from None

    def describe(self) -> str:
        """The scores in one line."""
        knn, linear = (100 * flags.float().mean().item() for flags in (self.knn, self.linear))
        return f"linear probe {linear:.1f} %, kNN {knn:.1f} %, held-out loss {self.loss:.4f}, {len(self.knn):,} images"


@dataclass(frozen=True)
class Verdict:
    """What two linear probes of the same images show."""

    word: str
    """"better", "worse" or "no difference"."""
    difference: float
    """Top-1 after minus before, in points."""
    interval: tuple[float, float]
    """95 % interval of the difference, in points: percentiles of its bootstrap over the validation images."""
    sentence: str


def measure(
    model: MIM,
    labelled: Labelled,
    *,
    seed: int,
    batch_size: int,
    num_workers: int,
    bf16: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> Scores:
    """Score a model without changing it; arguments and errors are those of `online_probe.measure`."""
    how = {"batch_size": batch_size, "num_workers": num_workers, "bf16": bf16, "mean": mean, "std": std}
    train, val = online_probe.features_of(model, labelled, **how)  # type: ignore[arg-type]
    [knn] = scores.knn_correct(train, val, ks=(online_probe.NEIGHBOURS,)).values()
    [linear] = scores.linear_correct(train, val, seed=seed, **_LINEAR).values()  # type: ignore[arg-type]
    loss = online_probe.held_out_loss(model, labelled.val, seed=seed, **how)  # type: ignore[arg-type]
    return Scores(knn.cpu(), linear.cpu(), loss)


def judge(before: Scores, after: Scores, *, seed: int = 0) -> Verdict:
    """Compare the linear probes of two networks on the same images, by a paired bootstrap (Efron, 1979).

    Raises:
        RunError: they are of different images.
    """
    if len(before.linear) != len(after.linear):
        raise RunError(
            f"{len(after.linear)} validation images are readable, and {len(before.linear)} were before the first step; "
            f"expected the same: restore them, or start over with --overwrite"
        )
    gains = after.linear.float() - before.linear.float()  # (N,) in -1, 0, 1
    generator = torch.Generator().manual_seed(seed)
    draws = torch.stack(
        [gains[torch.randint(len(gains), (len(gains),), generator=generator)].mean() for _ in range(NUM_DRAWS)]
    )
    low, high = (100 * value for value in draws.quantile(torch.tensor([0.025, 0.975])).tolist())
    difference = 100 * gains.mean().item()
    word = "better" if low > 0 else "worse" if high < 0 else "no difference"
    first, second = (100 * flags.float().mean().item() for flags in (before.linear, after.linear))
    opening = f"no difference that these {len(gains):,} images can show" if word == "no difference" else word
    sentence = (
        f"{opening}: linear probe {first:.1f} % before, {second:.1f} % after ({difference:+.1f} points, 95 % interval "
        f"{low:+.1f} to {high:+.1f}, {len(gains):,} images)"
    )
    return Verdict(word, difference, (low, high), sentence)
