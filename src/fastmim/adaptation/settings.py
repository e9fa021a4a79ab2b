"""Settings of `adapt`; does not import torch.

No `from __future__ import annotations` here, for the reason given in `training/settings.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from fastmim.method.settings import PretrainConfig
from fastmim.published.pretraining import adapt as _recipe

_RECIPE: dict[str, Any] = _recipe()  # the defaults, so that help and signatures show what happens


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(PretrainConfig):
    """Which model is adapted, and how its gain is measured."""

    RESUMABLE: ClassVar[frozenset[str]] = (PretrainConfig.RESUMABLE - {"probe"}) | {"keep"}

    recipe: str | None = "adapt"
    """Settings to start from; flags override them. `adapt`: the initial weights teach, beside HOG; few epochs, a low
    learning rate with layer decay; images of the size that the model knows, at most 256 pixels."""

    target: Literal["hog", "pixels", "rgb", "random-projection", "teacher", "hog+teacher"] = _RECIPE["target"]
    teacher: str | None = _RECIPE["teacher"]
    warmup: str = _RECIPE["warmup"]
    lr: float = _RECIPE["lr"]
    layer_decay: float = _RECIPE["layer_decay"]
    probe_every: str = _RECIPE["probe_every"]

    epochs: float | None = None
    """Passes over the data. A larger number trains the run in --out longer; the learning rate then follows the
    schedule of the new length. [default: 20, unless --steps is given]"""

    out: Path = Path("runs/adapt")
    """Run directory. The same command with the same directory resumes; --config takes its config.yaml."""

    probe: str | None = None
    """Labelled images, none of --data if possible, to measure the network before the first step and after the last:
    kNN, a quick linear probe and held-out loss. Without them nobody can say whether it got better."""

    keep: Literal["both", "best"] = "both"
    """Weights at the end: `both`, the adapted ones in weights.safetensors and the untouched ones in
    weights_before.safetensors; `best` puts those with the better linear probe into weights.safetensors."""
