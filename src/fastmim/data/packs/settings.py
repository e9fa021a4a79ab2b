"""What `fastmim pack` is asked for. No torch here: `fastmim --help` must be instant."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastmim.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Which images are made small, and how small."""

    data: str = field(default="", kw_only=False)
    """Images, anything that `fastmim pretrain --data` takes; with --verify, the pack."""

    out: Path | None = field(default=None, kw_only=False)
    """The directory to make, which --data then takes."""

    codec: Literal["jpeg", "raw"] = "jpeg"
    """`jpeg` (quality 95, full colour resolution) or `raw` (pixels: five times larger, three times faster to read)."""

    short_side: int = 256
    """What the shorter side is shrunk to, in pixels; smaller images stay as they are. Twice the training resolution
    is a good choice: 3 % of the crops are then enlarged."""

    num_workers: int | None = None
    """Processes; 0 works in the main process. [default: one for each core]"""

    max_bad_share: float = 0.05
    """Stop when more than this share of the images cannot be read; those that cannot are left out and listed."""

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise RequestError(f"short_side is {self.short_side}; expected at least 1 pixel, such as 256")
        if self.num_workers is not None and self.num_workers < 0:
            raise RequestError(f"num_workers is {self.num_workers}; expected 0 (work in the main process) or more")
        if not 0 <= self.max_bad_share <= 1:
            raise RequestError(f"max_bad_share is {self.max_bad_share:g}; expected 0 to 1, such as 0.05")
