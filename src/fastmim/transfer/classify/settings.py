"""Settings of `finetune`; does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastmim.config import check_positive
from fastmim.errors import RequestError
from fastmim.training.settings import CropConfig, check_duration
from fastmim.transfer.supervised_settings import SupervisedConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SupervisedConfig, CropConfig):
    """End-to-end classification: initial weights, labelled images, augmentation and regularisation."""

    FROM_PYTHON: ClassVar[frozenset[str]] = frozenset({"data", "val_data"})

    recipe: str | None = None
    """Published settings to start from (`vit-b`, `swin-b`); flags override them."""

    data: str = ""
    """Labelled images: a directory of class folders, or one with train/ and val/ (or validation/, valid/, test/),
    a .txt/.csv list of paths and labels, or torchvision://NAME."""

    out: Path = Path("runs/finetune")
    """Run directory. The same command with the same directory resumes; --config takes its config.yaml."""

    val_data: str | None = None
    """Labelled images to validate on. [default: those in --data, else --val-share of it]"""

    val_share: float = 0.1
    """Share of each class's images held out for validation if --data has no validation split: at least one of four,
    chosen by a hash of the path."""

    num_labels: int | None = None
    """Number of training images, balanced over the classes as far as possible. [default: all]"""

    DEFAULT_EPOCHS: ClassVar[float] = 100.0

    epochs: float | None = None
    """Passes over the training images. A larger number trains the run in --out longer; the learning rate then follows
    the schedule of the new length. [default: 100, unless --steps is given]"""

    batch_size: int = 64
    """Images per optimiser step, over all devices; --micro-batch limits how many a device takes at once.
    The default is lowered to the number of images if there are fewer."""

    lr: float = 6e-4
    """Learning rate per 256 images: the peak is lr * batch_size / 256."""

    layer_decay: float = 0.75
    """Factor between the learning rates of a block and of the block after it; 1 for one rate."""

    smoothing: float = 0.1
    """Label smoothing."""

    mixup: float = 0.8
    """Mixup's alpha; 0 for none. With cutmix as well, half of the pairs get each."""

    cutmix: float = 1.0
    """Cutmix's alpha; 0 for none."""

    randaugment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation, or `none`."""

    reprob: float = 0.25
    """Random erasing: share of the images that get a rectangle of noise."""

    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.9998; the average is then evaluated and
    exported. [default: none]"""

    eval_every: str | None = None
    """How often to validate: `5 epochs`, `500 steps`, `5%`. [default: 5%, but at most once an epoch]"""

    eval_crop: float = 1.0
    """Share of an image's shorter side in the central crop for validation; usual for ImageNet: 0.875."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = {"val_share": "0.1", "eval_crop": "0.875", "ema": "0.9998"}
        for name, example in shares.items():
            value = getattr(self, name)
            exclusive = name in ("val_share", "ema")
            if value is not None and not (0 < value < 1 or (value == 1 and not exclusive)):
                limit = "less than" if exclusive else "at most"
                raise RequestError(f"{name} is {value:g}; expected more than 0 and {limit} 1, such as {example}")
        for name in ("smoothing", "reprob"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise RequestError(f"{name} is {value:g}; expected 0 (none) or more, and less than 1")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RequestError(f"{name} is {getattr(self, name):g}; expected 0 (none) or more")
        check_positive(self, "num_labels")
        if self.eval_every is not None:
            check_duration("eval_every", self.eval_every)
