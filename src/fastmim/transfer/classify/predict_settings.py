"""Settings of `predict`; does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastmim.config import check_bad_share, check_positive, check_workers
from fastmim.data.settings import ImageConfig
from fastmim.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ImageConfig):
    """A fine-tuned classifier, the images to classify, and the file to write."""

    PLACES: ClassVar[frozenset[str]] = ImageConfig.PLACES | {"weights"}
    FROM_PYTHON: ClassVar[frozenset[str]] = frozenset({"data"})

    weights: str | None = None
    """A fine-tuning run, or a weights file with a classifier, such as its weights_best.safetensors."""

    data: str | None = None
    """Images: a directory (any depth), a .txt/.csv list of paths, torchvision://NAME, or `samples` (built in)."""

    out: Path = Path("predictions.csv")
    """File to write: .csv or .parquet, a row for each readable image."""

    batch_size: int = 256
    """Images per forward pass."""

    num_workers: int | None = None
    """Worker processes that load data; 0 loads in the main process. [default: one fewer than cores, at most 16]"""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the accelerator, if any."""

    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Precision of the forward pass; `auto` is bf16 where the device multiplies it fast, else float32."""

    max_bad_share: float = 0.05
    """Stop when more than this share of the images is unreadable; unreadable images are skipped and listed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "batch_size")
        check_workers(self.num_workers)
        check_bad_share(self.max_bad_share)
        if self.out.suffix not in (".csv", ".parquet"):
            raise RequestError(f"out is {self.out}; expected a name that ends in .csv or .parquet")
