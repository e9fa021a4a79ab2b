"""Settings of `pack`; does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastmim.config import Settings, check_bad_share, check_workers
from fastmim.data.settings import ImageConfig
from fastmim.errors import RequestError


@dataclass(frozen=True)
class _Places(Settings):
    """Before all others, for only the first fields of a command's settings can be given without their names."""

    data: str = ""
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PackConfig(ImageConfig, _Places):
    """Source, size and format of a pack."""

    data: str = field(default="", kw_only=False)
    """Images, as `fastmim pretrain --data` takes them; with --verify, the pack."""

    out: Path | None = field(default=None, kw_only=False)
    """Directory to write, for use as --data."""

    codec: Literal["jpeg", "raw"] = "jpeg"
    """`jpeg` (full colour resolution) or `raw` (pixels: seven times larger, several times faster to read)."""

    quality: int = 90
    """Quality of the JPEGs, 1 to 100. 95 is nearer to the originals, and half again as large."""

    short_side: int = 256
    """Shrink the shorter side to this many pixels; smaller images stay as they are. Twice the training resolution is
    a good choice: 3 % of the crops are then enlarged."""

    num_workers: int | None = None
    """Worker processes; 0 works in the main process. [default: one per core]"""

    max_bad_share: float = 0.05
    """Stop when more than this share of the images is unreadable; unreadable images are skipped and listed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_side < 1:
            raise RequestError(f"short_side is {self.short_side}; expected at least 1 pixel, such as 256")
        if not 1 <= self.quality <= 100:
            raise RequestError(f"quality is {self.quality}; expected 1 to 100, such as 90")
        check_workers(self.num_workers)
        check_bad_share(self.max_bad_share)
