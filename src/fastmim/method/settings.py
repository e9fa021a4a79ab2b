"""Settings of pre-training; does not import torch.

No `from __future__ import annotations` here, for the reason given in `training/settings.py`.
"""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fastmim.config import check_positive
from fastmim.errors import RequestError, shown
from fastmim.training import schedule
from fastmim.training.settings import CropConfig, check_duration


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(CropConfig):
    """Masked image modeling: backbone, image sizes, masking, targets and decoder."""

    RESUMABLE: ClassVar[frozenset[str]] = CropConfig.RESUMABLE | {"picture_every", "probe", "probe_every"}
    PLACES: ClassVar[frozenset[str]] = CropConfig.PLACES | {"init", "probe"}
    FROM_PYTHON: ClassVar[frozenset[str]] = frozenset({"data", "probe"})

    recipe: str | None = None
    """Published settings to start from, such as `vit-b`; flags override them. `fastmim recipes` lists all."""

    backbone: str = "vit_small_patch16_224"
    """Any timm model that `fastmim backbones` lists."""

    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm.create_model, such as --backbone-args.depth 4."""

    init: str | None = None
    """Weights to start from, and with them the backbone unless --backbone is given: a run directory, a weights file,
    `timm` (timm's published ones of --backbone), timm:NAME, or hf-hub:OWNER/NAME (a timm model of the Hub). The decoder
    and the mask token of a run, or of a converted pre-training checkpoint, are taken too where they fit. Weights are
    fetched once, and never on resuming; images are normalised as they are used to."""

    linear_init: Literal["xavier", "timm"] = "xavier"
    """How a ViT's, Swin's, PVTv2's or CMT's linear layers start: Xavier-uniform as in MAE and FastMIM, or `timm`'s
    truncated normal, as in SimMIM and MaskFeat. Other backbones start as timm has them."""

    img_size: int = 128
    """Side of the training crops in pixels."""

    stages: str | None = None
    """Resolutions and their shares of the run (FastMIM-P), such as 128:0.5,160:0.3,192:0.2; replaces --img-size."""

    target: Literal["hog", "pixels", "rgb", "random-projection", "teacher", "hog+teacher"] = "hog"
    """Target of the hidden blocks: edge orientations (HOG), pixels standardised per patch, plain pixels, a random
    projection of standardised patches, features of --teacher, or HOG and features with a head and weight 1 each."""

    teacher: str | None = None
    """Frozen network whose features are the target: a timm model, a run directory, a weights file, hf-hub:OWNER/NAME,
    or `init`, the weights that --init starts from. It is not saved in the run: resuming needs the same weights."""

    teacher_size: int | None = None
    """Side in pixels of the images that the teacher sees. [default: the size that its weights were trained at]"""

    teacher_loss: Literal["smooth-l1", "cosine"] = "smooth-l1"
    """Error of predicted teacher features: Huber's with a threshold of 1, or 1 minus the cosine."""

    masking: Literal["in-place", "drop"] = "in-place"
    """Paint over hidden blocks, or drop their tokens (plain ViTs only), so that only the visible ones are encoded."""

    mask_ratio: float = 0.75
    """Share of the blocks that are hidden; 0 with --target teacher distils the features of the whole image."""

    masks_per_image: int = 1
    """Differently masked copies of each image in a batch: reading, cropping and the target are paid once for all
    (data2vec 2.0). --batch-size counts the copies; an epoch still reads every image once."""

    block: int | None = None
    """Side of a hidden block in pixels. [default: the backbone's stride; more for small strides]"""

    decoder: str = "auto"
    """WIDTHxDEPTH, such as 256x4, or `linear`; `auto` follows the encoder's width and stride."""

    loss: Literal["l2", "l1"] = "l2"
    """Squared or absolute error of the hidden cells; a teacher's features have --teacher-loss."""

    encoder_depth: float = 1.0
    """Share of the backbone's blocks that are pre-trained, counted from the input."""

    layer_decay: float = 1.0
    """Factor between the learning rates of a backbone's block and of the block after it; 1 for one rate."""

    picture_every: str = "10%"
    """How often a reconstruction picture is drawn: `500 steps`, `10 epochs`, `10%`, or `never`."""

    probe: str | None = None
    """Labelled images for measuring the run as it trains: held-out MIM loss (a good predictor of fine-tuning accuracy,
    arXiv 2206.04664), kNN accuracy (low for MIM: watch whether it rises) and effective rank of the features."""

    probe_every: str = "10%"
    """How often --probe is measured: `500 steps`, `10 epochs` or `10%`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_ratio < 1:
            raise RequestError(f"mask_ratio is {self.mask_ratio}; expected at least 0 and less than 1, such as 0.75")
        if not 0 < self.encoder_depth <= 1:
            raise RequestError(
                f"encoder_depth is {self.encoder_depth}; expected more than 0 and at most 1, such as 0.75"
            )
        if not 0 < self.layer_decay <= 1:
            raise RequestError(f"layer_decay is {self.layer_decay:g}; expected more than 0 and at most 1, such as 0.75")
        check_positive(self, "img_size", "block", "teacher_size", "masks_per_image")
        self.decoder_size()
        if self.picture_every != "never":
            check_duration("picture_every", self.picture_every)
        check_duration("probe_every", self.probe_every)
        self.sizes()

    @property
    def images_per_step(self) -> int:
        """Images that a step reads, each of which is masked in `masks_per_image` ways.

        Raises:
            RequestError: the batch does not divide.
        """
        images, left = divmod(self.batch_size, self.masks_per_image)
        if left:
            near = " or ".join(str(n * self.masks_per_image) for n in (images, images + 1) if n)
            raise RequestError(
                f"masks_per_image is {self.masks_per_image} with a batch of {self.batch_size}; expected a divisor, as "
                f"the batch counts the copies: take --batch-size {near}"
            )
        return images

    def targets(self) -> tuple[str, ...]:
        """Return the names of the targets, one or two."""
        return tuple(self.target.split("+"))

    def sizes(self) -> tuple[tuple[int, float], ...]:
        """Return the stages as (image size, share of the run); the shares sum to 1."""
        if self.stages is None:
            return ((self.img_size, 1.0),)
        try:
            return schedule.parse_stages(self.stages)
        except ValueError as error:
            raise RequestError(f"stages is {shown(self.stages)}; {error}") from None

    def decoder_size(self) -> tuple[int, int] | Literal["auto", "linear"]:
        """Return (width, depth) of the decoder, or `auto` or `linear`."""
        if self.decoder == "auto":
            return "auto"
        if self.decoder == "linear":
            return "linear"
        match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", self.decoder)
        width, depth = (int(match[1]), int(match[2])) if match else (0, 0)
        if not width or not depth or width % 32:
            raise RequestError(
                f"decoder is {shown(self.decoder)}; expected auto, linear or WIDTHxDEPTH, WIDTH a multiple of 32, "
                f"such as 256x4"
            )
        return width, depth
