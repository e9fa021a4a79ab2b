"""Settings of `detect`; does not import torch.

No `from __future__ import annotations` here, as in `training.settings`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastmim.config import check_positive
from fastmim.errors import RequestError
from fastmim.transfer.dense_settings import DenseConfig


@dataclass(frozen=True, kw_only=True)
class DetectConfig(DenseConfig):
    """Object detection: initial weights, images with boxes and masks, augmentation and test."""

    RESUMABLE: ClassVar[frozenset[str]] = DenseConfig.RESUMABLE | {"images", "val_images"}
    PLACES: ClassVar[frozenset[str]] = DenseConfig.PLACES | {"images", "val_images"}

    recipe: str | None = None
    """Published settings to start from (`swin-b`, `vit-b`, `swin-t`, `convnext-t`, `pvtv2-b2`); flags override them."""

    data: str = ""
    """A folder in COCO's layout (annotations/instances_train2017.json and train2017/, the same with val2017), or an
    annotation file in COCO's format."""

    out: Path = Path("runs/detect")
    """Run directory. The same command with the same directory resumes; --config takes its config.yaml."""

    images: str | None = None
    """Folder of the images of an annotation file. [default: train2017/ in --data]"""

    val_data: str | None = None
    """Annotation file of images to validate on, or a folder in COCO's layout. [default: that in --data]"""

    val_images: str | None = None
    """Folder of these images. [default: val2017/ in --val-data or --data]"""

    masks: bool | None = None
    """Find masks besides boxes; --no-masks for boxes alone. [default: if the training images have any]"""

    channels: int = 256
    """Channels of the feature pyramid and of the heads."""

    num_regions: int = 512
    """Regions of each image that the heads are trained on."""

    img_size: int = 1024
    """Side of the training crops in pixels, and longer side of the images in tests."""

    scale: tuple[float, float] = (0.1, 2.0)
    """Large-scale jitter: smallest and largest size of the image from which a crop is cut, its longer side as a
    multiple of --img-size. Near 1 for short trainings."""

    copy_paste: bool = False
    """Paste a random half of the objects of each training image on another image that is read with it; takes masks."""

    DEFAULT_EPOCHS: ClassVar[float] = 36.0

    epochs: float | None = None
    """Passes over the training images. [default: 36, unless --steps is given]"""

    compile: bool | None = False
    """Not for detection, whose number of boxes differs from image to image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_regions")
        if self.compile:
            raise RequestError(
                "compile is True; expected no compilation, as the number of boxes differs from image to image: drop it"
            )
