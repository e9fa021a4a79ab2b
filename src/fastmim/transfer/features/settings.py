"""Settings of `probe` and `embed`; does not import torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from fastmim.config import check_bad_share, check_positive, check_workers
from fastmim.data.settings import ImageConfig
from fastmim.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(ImageConfig):
    """Backbone, layer and images of the frozen features."""

    PLACES: ClassVar[frozenset[str]] = ImageConfig.PLACES | {"weights"}
    FROM_PYTHON: ClassVar[frozenset[str]] = frozenset({"data"})

    weights: str | None = None
    """A run directory, a weights file, a timm model (its published weights), or `none` for an untrained backbone."""

    data: str | None = None
    """Images: a directory (any depth), a .txt/.csv list of paths, torchvision://NAME, or `samples` (built in)."""

    backbone: str | None = None
    """Architecture: required with --weights none; other weights must match it."""

    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm.create_model together with --backbone, such as --backbone-args.depth 4."""

    img_size: int | None = None
    """Side of the images in pixels. [default: the size that the weights were trained at]"""

    pool: Literal["avg", "cls", "both", "patches", "attention"] = "avg"
    """Mean over the feature map, class token (where the backbone has one), or both concatenated; for `embed` also
    `patches`, the features of all positions, row by row, or `attention`, how each head of a plain ViT lets the class
    token weigh them."""

    block: int = -1
    """Block of a ViT, or stage of a hierarchical backbone, whose output is taken; negative counts from the end."""

    batch_size: int = 256
    """Images per forward pass."""

    num_workers: int | None = None
    """Worker processes that load data; 0 loads in the main process. [default: one fewer than cores, at most 16]"""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the accelerator, if any."""

    devices: int | Literal["all"] | None = None
    """Devices of this machine that share the images, with a process for each.
    [default: all GPUs; 1 on a CPU and from Python]"""

    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Precision of the forward pass; `auto` is bf16 where the device multiplies it fast, else float32."""

    seed: int = 0
    """Decides the weights of `none` and everything random in a probe."""

    max_bad_share: float = 0.05
    """Stop when more than this share of the images is unreadable; unreadable images are skipped and listed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "batch_size", "img_size", "devices")
        check_workers(self.num_workers)
        check_bad_share(self.max_bad_share)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(FeatureConfig):
    """Method and validation split of a probe."""

    PLACES: ClassVar[frozenset[str]] = FeatureConfig.PLACES | {"val_data"}
    FROM_PYTHON: ClassVar[frozenset[str]] = FeatureConfig.FROM_PYTHON | {"val_data"}

    method: Literal["knn", "linear"] = "knn"
    """Nearest neighbours (no training; low accuracy for masked image modeling), or linear heads."""

    val_data: str | None = None
    """Labelled images to validate on. [default: those in --data (`val/`, a test split), else --val-share of it]"""

    val_share: float = 0.1
    """Share of each class's images held out for validation if --data has no validation split: at least one of four,
    chosen by a hash of the path."""

    num_labels: int | None = None
    """Number of labelled training images, balanced over the classes as far as possible. [default: all]"""

    out: Path = Path("probe.json")
    """JSON file to write the result to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool in ("patches", "attention"):
            raise RequestError(f"pool is {self.pool!r}, no vector of an image; expected --pool avg, cls or both")
        if self.num_labels is not None and self.num_labels < 1:
            raise RequestError(f"num_labels is {self.num_labels}; expected at least one for each class")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(FeatureConfig):
    """Output file of the features."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset(
        {"batch_size", "num_workers", "device", "devices", "max_bad_share", "max_pixels", "out"}
    )

    out: Path = Path("features.parquet")
    """File to write: .parquet (path, label, embedding), or .npy with a .csv of the same name (path, label)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix not in (".parquet", ".npy"):
            raise RequestError(f"out is {self.out}; expected a name that ends in .parquet or .npy")
