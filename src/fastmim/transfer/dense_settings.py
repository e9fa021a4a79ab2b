"""Settings that detection and segmentation share; does not import torch.

No `from __future__ import annotations` here, as in `training.settings`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from fastmim.config import check_positive
from fastmim.errors import RequestError
from fastmim.training.settings import check_duration
from fastmim.transfer.supervised_settings import SupervisedConfig


@dataclass(frozen=True, kw_only=True)
class DenseConfig(SupervisedConfig):
    """The backbone of a network that predicts boxes, masks or a class for each pixel, and how it is trained."""

    RESUMABLE: ClassVar[frozenset[str]] = SupervisedConfig.RESUMABLE | {"num_pictures"}

    window: int | None = None
    """Side of the windows in a plain ViT's attention, such as 14: faster on large images. Four blocks still see the
    whole map. [default: every block does]"""

    channels: int = 256
    """Channels of the layers on the backbone."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest size of the image from which a crop is cut, as a multiple of --img-size."""

    batch_size: int = 16
    """Images per optimiser step, over all devices; --micro-batch limits how many a device takes at once.
    The default is lowered to the number of images if there are fewer."""

    lr: float = 1.6e-3
    """Learning rate per 256 images: the peak is lr * batch_size / 256, which is 1e-4 by default."""

    eval_every: str = "10%"
    """How often to validate: `5 epochs`, `500 steps`, `5%`."""

    num_pictures: int = 4
    """Validation images that are drawn with their prediction in samples/."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "window", "channels")
        check_duration("eval_every", self.eval_every)
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise RequestError(f"scale is {self.scale}; expected 0 < smallest <= largest, such as 0.5 2.0")
        if self.num_pictures < 0:
            raise RequestError(f"num_pictures is {self.num_pictures}; expected 0 (none) or more")
