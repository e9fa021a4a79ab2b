"""Image files by index."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class PackedNames:
    """Many file names in two flat buffers.

    A million `str` cost 100 MB in each worker, because touching their reference counts copies the pages
    that fork shares; one `bytes` costs its length, once.
    """

    blob: bytes
    ends: np.ndarray
    """(N,) int64, where each name ends in `blob`."""

    @classmethod
    def pack(cls, names: Sequence[bytes]) -> PackedNames:
        lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
        return cls(b"".join(names), lengths.cumsum())

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        return self.blob[self.ends[index - 1] if index else 0 : self.ends[index]]

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class Files:
    """Encoded images, one file each."""

    origin: str
    root: str
    """The folder that relative paths start from."""
    paths: PackedNames
    labels: np.ndarray | None = None
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        return str(Path(self.root, os.fsdecode(self.paths[index])))

    def key(self, index: int) -> bytes:
        return self.paths[index]

    def position(self, index: int) -> int:
        return index
