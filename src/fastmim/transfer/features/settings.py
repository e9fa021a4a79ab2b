"""What is asked of frozen features: the settings of `probe` and `embed`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastmim.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Whose features, of which images."""

    weights: str | None = None
    """A run directory, a weights file, a timm model (its published weights), or `none` for an untrained backbone."""

    data: str | None = None
    """Images: a directory (any depth), a .txt/.csv list of paths, torchvision://NAME, or `samples` (built in)."""

    backbone: str | None = None
    """The architecture for `--weights none`; with other weights, what they must be."""

    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm.create_model, such as --backbone-args.depth 4, with --backbone."""

    img_size: int | None = None
    """Side of the images in pixels. [default: what the weights were trained at]"""

    pool: Literal["avg", "cls", "both"] = "avg"
    """Mean over the map, class token (where the backbone has one), or one after the other."""

    block: int = -1
    """Whose output: a block of a ViT, a stage of a hierarchical backbone; negative from the end."""

    batch_size: int = 256
    """Images that go through the backbone at once."""

    num_workers: int | None = None
    """Data processes; 0 loads in the main process. [default: one per core but one, at most 16]"""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the accelerator if there is one."""

    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Arithmetic of the backbone; `auto` is bf16 where the accelerator has it, else float32."""

    seed: int = 0
    """Decides the weights of `none` and all that a probe draws."""

    max_bad_share: float = 0.05
    """Stop when more than this share of the images cannot be read; those that cannot are left out and listed."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "img_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}; expected at least 1")
        if self.num_workers is not None and self.num_workers < 0:
            raise RequestError(f"num_workers is {self.num_workers}; expected 0 (load in the main process) or more")
        if not 0 <= self.max_bad_share <= 1:
            raise RequestError(f"max_bad_share is {self.max_bad_share:g}; expected 0 to 1, such as 0.05")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(FeatureConfig):
    """How well frozen features tell classes apart."""

    method: Literal["knn", "linear"] = "knn"
    """Nearest neighbours (no training; low by nature for masked image modeling), or linear heads."""

    val_data: str | None = None
    """Validation images. [default: `val/` beside `train/`, a torchvision set's test split, or --val-share]"""

    val_share: float = 0.1
    """Share of the images to validate on, by a hash of their path, where there are none apart."""

    num_labels: int | None = None
    """Use so many labelled training images only, as even over the classes as possible. [default: all]"""

    out: Path = Path("probe.json")
    """File for the result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_labels is not None and self.num_labels < 1:
            raise RequestError(f"num_labels is {self.num_labels}; expected at least one for each class")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(FeatureConfig):
    """Features of a folder as a file."""

    out: Path = Path("features.parquet")
    """File to write: .parquet (path, label, embedding), or .npy with a .csv of the same name (path, label)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix not in (".parquet", ".npy"):
            raise RequestError(f"out is {self.out}; expected a name that ends in .parquet or .npy")


# What may change when an embedding goes on: it decides how fast, not what comes out.
RESUMABLE = frozenset({"batch_size", "num_workers", "device", "max_bad_share", "out"})
