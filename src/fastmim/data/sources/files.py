"""Image files by index: a folder's, a list's, or those of a torchvision dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmim.data.greys import PLAIN, Decoding
from fastmim.data.sources.index import NameTable
from fastmim.system.files import read_regular


@dataclass(frozen=True, eq=False)
class Files:
    """Encoded images, one file each."""

    origin: str
    root: str
    """The folder that relative paths start from."""
    paths: NameTable
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    decoding: Decoding = PLAIN
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        return read_regular(self.name(index))

    def name(self, index: int) -> str:
        return str(Path(self.root, os.fsdecode(self.paths[index])))

    def key(self, index: int) -> bytes:
        return self.paths[index]

    def position(self, index: int) -> int:
        return index
