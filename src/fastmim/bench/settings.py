"""Settings of `bench` and `cost`; does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastmim.config import Settings, check_positive, nearest
from fastmim.errors import RequestError

PARTS = ("data", "hog", "step", "finetune", "end-to-end")
RECORDS = Path("runs/bench")
"""Where `bench` writes and `cost` reads, unless told otherwise."""
BACKBONES = {
    "cpu": ("vit_small_patch16_224", "swin_tiny_patch4_window7_224", "convnext_tiny"),
    "accelerator": ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base", "pvt_v2_b2"),
}


LARGE = "vit_base_patch16_224"
"""The network whose share of a CPU's peak is measured, in larger batches, unless other backbones are chosen."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Settings):
    """Parts, backbones, device and length of a benchmark."""

    records: Path = RECORDS
    """Directory for the records (name-DATE.json), tables (bench.md) and chart (bench.png)."""

    only: str = ",".join(PARTS)
    """Comma-separated parts: data, hog, step, finetune, end-to-end."""

    backbones: str | None = None
    """Comma-separated timm models; the first, a plain ViT, is also used for MAE and fine-tuning, the second for SimMIM.
    [default: ViT-S, Swin-T and ConvNeXt-T on a CPU; ViT-B, Swin-B, ConvNeXt-B and PVTv2-B2 elsewhere]"""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the accelerator, if any."""

    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Precision of both sides of a training step; `auto` is bf16 where the device multiplies it fast, else float32."""

    batch_size: int | None = None
    """Images per training step. [default: 16 on a CPU, 256 elsewhere]"""

    rounds: int | None = None
    """Measurements of each variant, taken in turn. [default: 5 on a CPU, 15 elsewhere]"""

    quick: bool = False
    """One round on few images: a check that everything runs, not a measurement."""

    def __post_init__(self) -> None:
        check_positive(self, "batch_size", "rounds")
        for part in self.parts():
            if part not in PARTS:
                raise RequestError(f"only names {part!r}; expected some of {', '.join(PARTS)}{nearest(part, PARTS)}")

    def parts(self) -> tuple[str, ...]:
        """Return the chosen parts."""
        return tuple(part.strip() for part in self.only.split(","))

    def backbone_names(self, device_type: str) -> tuple[str, ...]:
        """Return the chosen backbones, or the defaults of the device."""
        if self.backbones is None:
            return BACKBONES["cpu" if device_type == "cpu" else "accelerator"]
        return tuple(name.strip() for name in self.backbones.split(","))


@dataclass(frozen=True, kw_only=True)
class CostConfig(Settings):
    """Length of the training to estimate, and what to estimate it from: records, or else a trial on this machine."""

    images: int
    """Images in the training set."""

    epochs: float
    """Passes over the images."""

    record: Path | None = None
    """A record of `fastmim bench`, bench-step. [default: the newest in --records]"""

    records: Path = RECORDS
    """Directory of the records. If it holds none, a step is tried on this machine."""

    backbone: str | None = None
    """Any timm model: try a step of it on this machine, whatever records there are. [default: vit_small_patch16_224]"""

    img_size: int = 128
    """Side of the images in pixels, for a trial."""

    device: str = "auto"
    """Device of a trial: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the accelerator, if any."""

    devices: int = 1
    """Predict the training on so many devices (docs/scaling.md has the model); what follows belongs to it."""

    batch_size: int = 4096
    """Images of a step, over all devices."""

    devices_per_node: int = 8
    """Devices of a machine."""

    inside: float = 300.0
    """GB/s between two devices of a machine, as NCCL's tests report it."""

    between: float = 50.0
    """GB/s from a machine to the others, all its network cards together: 12.5 for one of 100 Gb/s."""

    loader: float | None = None
    """Images/s that a machine reads and decodes. [default: as many as its devices take]"""

    def __post_init__(self) -> None:
        check_positive(self, "images", "epochs", "img_size", "devices", "batch_size", "devices_per_node")
        check_positive(self, "inside", "between", "loader")
        if self.batch_size % self.devices:
            raise RequestError(
                f"batch_size is {self.batch_size}, which does not divide among {self.devices} devices; expected a "
                f"multiple, such as {max(1, self.batch_size // self.devices) * self.devices}"
            )
