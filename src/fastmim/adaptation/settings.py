"""Settings of `adapt`; does not import torch.

No `from __future__ import annotations` here, for the reason given in `training/settings.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastmim.method.settings import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(PretrainConfig):
    """Which model is adapted, and how its gain is measured."""

    RESUMABLE: ClassVar[frozenset[str]] = (PretrainConfig.RESUMABLE - {"probe"}) | {"keep"}

    recipe: str | None = "adapt"
    """Settings to start from; flags override them. `adapt`: the initial weights teach, beside HOG; few epochs, a low
    learning rate with layer decay; images of the size that the model knows, at most 256 pixels."""

    out: Path = Path("runs/adapt")
    """Run directory. The same command with the same directory resumes; --config takes its config.yaml."""

    probe: str | None = None
    """Labelled images, none of --data if possible, to measure the network before the first step and after the last:
    kNN, a quick linear probe and held-out loss. Without them nobody can say whether it got better."""

    keep: Literal["both", "best"] = "both"
    """Weights at the end: `both`, the adapted ones in weights.safetensors and the untouched ones in
    weights_before.safetensors; `best` puts those with the better linear probe into weights.safetensors."""
