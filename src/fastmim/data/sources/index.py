"""The index of a folder or of shards: names in flat buffers, cached on the disk as .npz and never as a pickle."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fastmim.system.files import replacing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

IndexT = TypeVar("IndexT", bound="DataclassInstance")

# A file that is added within the clock's grain of the last change leaves a folder's time as it was, so an index of
# something that has just changed is not cached.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, eq=False)
class NameTable:
    """Many file names in two flat buffers.

    A million `str` cost 100 MB in each worker, because touching their reference counts copies the pages
    that fork shares; one `bytes` costs its length, once.
    """

    blob: bytes
    ends: np.ndarray
    """(N,) int64, the end of each name in `blob`."""

    @classmethod
    def build(cls, names: Sequence[bytes]) -> NameTable:
        lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
        return cls(b"".join(names), lengths.cumsum())

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        return self.blob[self.ends[index - 1] if index else 0 : self.ends[index]]

    def ending_in(self, endings: Iterable[bytes]) -> np.ndarray:
        """(N,) bool, whether each name ends in one of these, in lower or upper case."""
        letters = np.frombuffer(self.blob.lower(), dtype=np.uint8)
        lengths = np.diff(self.ends, prepend=0)
        found = np.zeros(len(self), dtype=bool)
        for ending in endings:
            ends = self.ends[lengths >= len(ending)]
            same = [letters[ends - len(ending) + at] == letter for at, letter in enumerate(ending)]
            found[lengths >= len(ending)] |= np.logical_and.reduce(same)
        return found

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))


def cache_path(folder: Path, *known: object) -> Path:
    """The cache file of an index that `known` determines."""
    return folder / f"{hashlib.sha256(repr(known).encode()).hexdigest()[:32]}.npz"


def save(index: DataclassInstance, path: Path, *, changed: int, started: int) -> None:
    """Cache an index, a dataclass of `NameTable`s and arrays.

    An unwritable cache is no error: every start then builds the index again.

    Args:
        changed: When the newest of what was indexed last changed, in ns.
        started: When indexing started, in ns.
    """
    if changed >= started - _SETTLED_NS:
        return
    arrays: dict[str, np.ndarray] = {}
    for name, value in ((field.name, getattr(index, field.name)) for field in fields(index)):
        if isinstance(value, NameTable):
            arrays |= {name: np.frombuffer(value.blob, dtype=np.uint8), f"{name}_ends": value.ends}
        else:
            arrays[name] = value
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def load(kind: type[IndexT], path: Path) -> IndexT | None:
    """Load a cached index; None if it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            ends = {name: arrays.get(f"{name}_ends") for name in (field.name for field in fields(kind))}
            return kind(**{n: arrays[n] if e is None else NameTable(arrays[n].tobytes(), e) for n, e in ends.items()})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def counted(endings: NameTable, counts: np.ndarray) -> Counter[str]:
    """How many files have each ending, as an index stores it."""
    return Counter(dict(zip(map(os.fsdecode, endings), counts.tolist(), strict=True)))


def passed_over(others: Counter[str]) -> tuple[str, ...]:
    """A line for a plan about files that are not images, if there are any."""
    num = others.total()
    what = "file that is not an image" if num == 1 else "files that are not images"
    return (f"left out  {num:,} {what} ({list_endings(others)})",) if num else ()


def list_endings(others: Counter[str]) -> str:
    """The five most frequent endings of files that are not images: ".heic 2, no ending 1"."""
    most = sorted(others.items(), key=lambda item: (-item[1], item[0]))[:5]
    return ", ".join(f"{ending or 'no ending'} {count:,}" for ending, count in most)
