"""Settings that all training from given weights on labels shares; does not import torch.

No `from __future__ import annotations` here, as in `training.settings`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastmim.config import check_positive
from fastmim.errors import RequestError
from fastmim.training.settings import TrainConfig


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(TrainConfig):
    """The weights that a training starts from, and what happens to them."""

    PLACES: ClassVar[frozenset[str]] = TrainConfig.PLACES | {"weights", "val_data"}
    RESUMABLE: ClassVar[frozenset[str]] = TrainConfig.RESUMABLE | {"val_data"}

    recipe: str | None = None
    """Published settings to start from; flags override them."""

    weights: str = "none"
    """Weights to start from: a run directory, a weights file, a timm model's name (timm's weights), or `none`."""

    backbone: str | None = None
    """Architecture: required with --weights none; other weights must match it. [default: that of the weights]"""

    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm.create_model; weights must match them. [default: those of the weights]"""

    img_size: int = 224
    """Side of the training crops in pixels; the weights are resampled to it."""

    layer_decay: float = 1.0
    """Factor between the learning rates of a block and of the block after it; 1 for one rate."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""

    drop_path: float | None = None
    """Stochastic depth: how often the last block is skipped. [default: 0.1 where the backbone supports it]"""

    flip: bool = True
    """Flip half of the training images left to right; --no-flip where left and right matter, as in text."""

    mean: tuple[float, float, float] | None = None
    """RGB mean for normalising pixels in [0, 1]. [default: that of the weights, else ImageNet's]"""

    std: tuple[float, float, float] | None = None
    """RGB standard deviation, likewise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "img_size")
        if not 0 < self.layer_decay <= 1:
            raise RequestError(f"layer_decay is {self.layer_decay:g}; expected more than 0 and at most 1, such as 0.75")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise RequestError(f"drop_path is {self.drop_path:g}; expected 0 (none) or more, and less than 1")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise RequestError(f"std is {self.std}; expected three numbers above 0, such as 0.229 0.224 0.225")
