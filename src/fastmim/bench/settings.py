"""What `fastmim bench` and `fastmim cost` are asked. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastmim.config import nearest
from fastmim.errors import RequestError

PARTS = ("data", "hog", "step", "methods", "end-to-end")
BACKBONES = {
    "cpu": ("vit_small_patch16_224", "swin_tiny_patch4_window7_224", "convnext_tiny"),
    "accelerator": ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base", "pvt_v2_b2"),
}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure, where, how long."""

    records: Path = Path("benchmarks/records")
    """Directory for the records (name-DATE.json), tables (bench.md) and chart (bench.png)."""

    only: str = ",".join(PARTS)
    """Comma list of parts: data, hog, step, methods, end-to-end."""

    backbones: str | None = None
    """Comma list of timm models; the first, a plain ViT, also serves for the variants. [default: ViT-S, Swin-T and
    ConvNeXt-T on a CPU; ViT-B, Swin-B, ConvNeXt-B and PVTv2-B2 elsewhere]"""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the accelerator if there is one."""

    batch_size: int | None = None
    """Images in a training step. [default: 16 on a CPU, 256 elsewhere]"""

    rounds: int | None = None
    """Times that each form takes its turn. [default: 5 on a CPU, 15 elsewhere]"""

    quick: bool = False
    """One round on few images: shows that it works, not how fast."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}; expected at least 1")
        for part in self.parts():
            if part not in PARTS:
                raise RequestError(f"only names {part!r}; expected some of {', '.join(PARTS)}{nearest(part, PARTS)}")

    def parts(self) -> tuple[str, ...]:
        """The parts asked for."""
        return tuple(part.strip() for part in self.only.split(","))

    def backbone_names(self, device_type: str) -> tuple[str, ...]:
        """The backbones asked for, or those that suit the device."""
        if self.backbones is None:
            return BACKBONES["cpu" if device_type == "cpu" else "accelerator"]
        return tuple(name.strip() for name in self.backbones.split(","))


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """How long a training would be."""

    images: int
    """Images in the training set."""

    epochs: float
    """Passes over them."""

    record: Path | None = None
    """A record of `fastmim bench`, bench-step or bench-methods. [default: the newest of each in --records]"""

    records: Path = Path("benchmarks/records")
    """Where the records are."""

    def __post_init__(self) -> None:
        for name in ("images", "epochs"):
            if not getattr(self, name) > 0:
                raise RequestError(f"{name} is {getattr(self, name)}; expected more than 0")
