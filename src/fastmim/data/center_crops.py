"""Evaluation batches: the central crop of each image of a source, once and in order."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fastmim.data.augment import decode_center
from fastmim.data.loader import read_ahead
from fastmim.data.sources import Source
from fastmim.data.unreadable import UNREADABLE, reason

Indices = Sequence[int] | np.ndarray
"""Positions in a source: a range, or an array of int64."""


@dataclass(frozen=True, eq=False)
class _Centers(Dataset[dict[str, Any]]):
    """The map-style dataset in the workers: a batch's indices -> its tensors."""

    source: Source
    size: int
    crop_pct: float

    def __getitems__(self, indices: Indices) -> dict[str, Any]:
        images = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        read: list[int] = []
        bad: list[tuple[str, str]] = []
        for index in map(int, indices):
            try:
                data = self.source.read(index)
                crop = decode_center(data, self.size, self.source.decoding, crop_pct=self.crop_pct)
            except UNREADABLE as error:
                bad.append((self.source.name(index), reason(error)))
            else:
                images[len(read)] = crop
                read.append(index)
        found = np.array(read, dtype=np.int64)
        result = {"images": images[: len(read)], "indices": torch.from_numpy(found), "bad": bad}
        if self.source.labels is not None:
            result["labels"] = torch.from_numpy(self.source.labels[found])
        return result


@dataclass(frozen=True)
class _Batches:
    """Indices in batches, the last of which may be shorter."""

    indices: Indices
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Indices]:
        starts = range(0, len(self.indices), self.batch_size)
        return (self.indices[start : start + self.batch_size] for start in starts)


def load_centers(
    source: Source,
    *,
    size: int,
    batch_size: int,
    indices: Indices | None = None,
    num_workers: int = 0,
    crop_pct: float = 1.0,
    pin_memory: bool = False,
) -> Generator[dict[str, Any], None, None]:
    """Read a source, or part of it, in order. The result does not depend on the number of workers.

    Args:
        source: The images.
        size: Side of the crops, in pixels.
        batch_size: Images in a batch; the last one may have fewer.
        indices: The images to read, in this order; all if None.
        num_workers: Number of worker processes; 0 reads in this process.
        crop_pct: Side of the central crop as a share of the image's shorter side.
        pin_memory: Put batches into page-locked memory.

    Yields:
        "images" uint8 (b, 3, size, size), "indices" int64 (b,) in the source, "labels" int64 (b,) if the source
        has any, and "bad", a list of (name, reason) of unreadable images, which are left out: b may be 0.

    Raises:
        RunError: A worker died.
    """
    return read_ahead(
        _Centers(source, size, crop_pct),
        _Batches(range(len(source)) if indices is None else indices, batch_size),
        source.origin,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
