"""Settings of `segment`; does not import torch.

No `from __future__ import annotations` here, as in `training.settings`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastmim.config import check_positive
from fastmim.errors import RequestError
from fastmim.transfer.dense_settings import DenseConfig


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(DenseConfig):
    """Semantic segmentation: initial weights, images with label images, augmentation and test."""

    RESUMABLE: ClassVar[frozenset[str]] = DenseConfig.RESUMABLE | {"labels", "val_labels", "classes"}
    PLACES: ClassVar[frozenset[str]] = DenseConfig.PLACES | {"labels", "val_labels", "classes"}

    recipe: str | None = None
    """Published settings to start from (`vit-b`, `mae-vit-b`, `swin-b`); flags override them."""

    data: str = ""
    """A folder in ADE20K's layout (images/training, annotations/training, and validation beside them), or a folder of
    images whose labels are in --labels."""

    out: Path = Path("runs/segment")
    """Run directory. The same command with the same directory resumes; --config takes its config.yaml."""

    labels: str | None = None
    """Folder of label images: a PNG for each image, of its name and size, whose pixels are numbers of classes.
    [default: the annotations/ in --data]"""

    val_data: str | None = None
    """Folder of images to validate on. [default: those in --data]"""

    val_labels: str | None = None
    """Folder of their label images. [default: those in --data]"""

    classes: Path | None = None
    """Text file with the name of a class in each line, in the order of their numbers. [default: classes.txt in --data,
    else the numbers that the label images hold]"""

    ignore_index: int | None = None
    """Number of pixels without a class, which are neither trained nor scored; with 0, the classes' numbers begin at 1.
    [default: 0 in ADE20K's layout, else 255]"""

    head: Literal["upernet", "linear"] = "upernet"
    """`upernet` trains everything, with an auxiliary FCN head; `linear` trains one linear layer on frozen features."""

    channels: int = 512
    """Channels of UPerNet."""

    aux_weight: float = 0.4
    """Weight of the auxiliary head's loss; 0 for no such head."""

    depths: tuple[int, ...] | None = None
    """The blocks of a plain ViT whose maps become strides 4, 8, 16 and 32, counted from 0. [default: four at equal
    distances, such as 2 5 8 11 of 12]"""

    img_size: int = 512
    """Side of the training crops in pixels, and of the windows in tests, whose images have it as their shorter side."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest size of the image from which a crop is cut: its shorter side as a multiple of --img-size."""

    jitter: bool = True
    """Change brightness, contrast, saturation and hue of training images; --no-jitter where colour tells classes."""

    test: Literal["slide", "whole"] = "slide"
    """Tests cut each image into overlapping windows, or give the network the whole image at once."""

    test_stride: int | None = None
    """Distance of these windows in pixels. [default: two thirds of --img-size]"""

    DEFAULT_EPOCHS: ClassVar[float] = 100.0

    epochs: float | None = None
    """Passes over the training images. [default: 100, unless --steps is given]"""

    lr_decay: Literal["cosine", "linear"] = "linear"
    """How the learning rate falls to 0: in half a cosine after the warm-up, or in a line from the first step on (the
    `poly` schedule of power 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "test_stride")
        if not 0 <= self.aux_weight < math.inf:
            raise RequestError(f"aux_weight is {self.aux_weight:g}; expected 0 (no auxiliary head) or more")
        if self.ignore_index is not None and not 0 <= self.ignore_index < 1 << 16:
            raise RequestError(f"ignore_index is {self.ignore_index}; expected 0 to 65535, such as 255")
        if self.depths is not None and len(self.depths) != 4:
            raise RequestError(f"depths is {list(self.depths)}; expected four blocks, such as 2 5 8 11")
        if self.test_stride is not None and self.test_stride > self.img_size:
            raise RequestError(
                f"test_stride is {self.test_stride}; expected at most img_size, {self.img_size}, or windows leave gaps"
            )
