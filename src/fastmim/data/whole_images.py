"""Whole images in order, one at a time, as they differ in size."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from fastmim.data.loader import read_ahead
from fastmim.data.sources import Source
from fastmim.data.unreadable import UNREADABLE, reason


@dataclass(frozen=True, eq=False)
class _Whole(Dataset[dict[str, Any]]):
    """The map-style dataset in the workers: a list of one index -> that image."""

    source: Source
    read: Callable[[int], dict[str, Any]]

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        [index] = indices
        try:
            return self.read(index) | {"index": index, "bad": []}
        except UNREADABLE as error:
            return {"index": index, "bad": [(self.source.name(index), reason(error))]}


def load_whole(
    source: Source, read: Callable[[int], dict[str, Any]], *, num_workers: int, indices: Sequence[int] | None
) -> Generator[dict[str, Any]]:
    """Read whole images in order, one at a time.

    Args:
        source: The images.
        read: Reads an image by its index; what it raises (`UNREADABLE`) makes that image unusable. Picklable.
        num_workers: Number of worker processes; 0 reads in this process.
        indices: The images to read; all if None.

    Yields:
        What `read` returns, "index", and "bad" as from `loader.load`; an unusable image has the latter two only.

    Raises:
        RunError: a worker died.
    """
    requests = [[index] for index in (range(len(source)) if indices is None else indices)]
    return read_ahead(_Whole(source, read), requests, source.origin, num_workers=num_workers)
