"""Tar shards in WebDataset's naming: indexed once by their headers, then read by offset, never extracted."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from fastmim.data.pillow import image_extensions
from fastmim.data.sources import index as indices
from fastmim.data.sources.index import NameTable
from fastmim.data.sources.source import ByPosition
from fastmim.data.sources.tar_headers import TRUNCATED, Member, TarDamage, members
from fastmim.errors import RequestError
from fastmim.system.files import open_regular, read_at

_FORMAT = 2
_MAX_OPEN = 128  # shards that a process keeps open
_NUM_THREADS = 8  # indexing waits for the disk or the network at every header


@dataclass(frozen=True, eq=False)
class Shards(ByPosition):
    """Encoded images in tars."""

    paths: NameTable
    """The shards."""
    stamps: np.ndarray
    """(number of shards, 2) int64, size in bytes and modification time in ns when indexed."""
    members: NameTable
    """The images' names within their shards."""
    shard: np.ndarray
    """(N,) int32, positions in `paths`."""
    offsets: np.ndarray
    """(N,) int64, the position of each image's first byte in its shard."""
    lengths: np.ndarray
    """(N,) int64, the size of each image in bytes."""

    def __len__(self) -> int:
        return len(self.shard)

    def read(self, index: int) -> bytes:
        shard = int(self.shard[index])
        opened = _open(self.paths[shard], *self.stamps[shard].tolist())
        return read_at(opened.fd, int(self.lengths[index]), int(self.offsets[index]))

    def name(self, index: int) -> str:
        return f"{os.fsdecode(self.paths[int(self.shard[index])])}#{os.fsdecode(self.members[index])}"


class _Opened:
    """A file descriptor that closes with its last reference. Processes may share it: `read_at` keeps no position."""

    def __init__(self, path: bytes) -> None:
        self.fd = open_regular(path)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self.fd)


@lru_cache(maxsize=_MAX_OPEN)
def _open(path: bytes, size: int, modified: int) -> _Opened:
    opened = _Opened(path)
    status = os.fstat(opened.fd)
    if (status.st_size, status.st_mtime_ns) != (size, modified):
        raise OSError(0, "the shard has changed since it was indexed; start again")
    return opened


def open_shards(paths: Sequence[Path], *, origin: str, cache_dir: Path) -> Shards:
    """Index shards, or load the cached index if no shard has changed.

    Images are the members whose extension belongs to one of Pillow's image formats. The label of
    "set/0001.rgb.jpg" is in "set/0001.cls" in the same shard, an integer as text. A truncated shard yields the
    images before the damage, with a warning.

    Raises:
        RequestError: A shard cannot be read or is not a tar, a label is not an integer, only some images have
            labels, or there are no images.
    """
    stats = [_stat(path, origin) for path in paths]
    stamps = np.array([(s.st_size, s.st_mtime_ns) for s in stats], dtype=np.int64).reshape(-1, 2)
    names = [os.fsencode(path.absolute()) for path in paths]
    cached = indices.cache_path(cache_dir / "shards", _FORMAT, sorted(image_extensions()), names, stamps.tolist())
    index = indices.load(_Index, cached)
    if index is None:
        started = time.time_ns()
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            found = list(pool.map(_index_shard, paths))
        index = _join(found)
        if not len(index.members):
            raise RequestError(_nothing_found(origin, found))
        indices.save(index, cached, changed=stamps[:, 1].max(), started=started)
    for damage in index.damages:
        warnings.warn(os.fsdecode(damage), stacklevel=3)
    labels, classes = None, None
    if len(index.labels):
        distinct, labels = np.unique(index.labels, return_inverse=True)
        classes = [str(number) for number in distinct.tolist()]
    table = NameTable.build(names)
    places = index.members, index.shard, index.offsets, index.lengths
    remarks = indices.passed_over(indices.counted(index.endings, index.counts))
    return Shards(table, stamps, *places, origin=origin, labels=labels, classes=classes, remarks=remarks)


@dataclass(frozen=True, eq=False)
class _Index:
    members: NameTable
    damages: NameTable
    """A warning for each damaged shard."""
    shard: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    """(N,) int64, as written in the shards; (0,) if there are none."""
    endings: NameTable
    """Of the members that are neither images nor labels."""
    counts: np.ndarray
    """(number of endings,) int64, those members."""


@dataclass(frozen=True, eq=False)
class _Found:
    """The contents of one shard."""

    path: Path
    names: NameTable
    places: np.ndarray
    """(n, 2) int64, offset and length of each image."""
    labels: np.ndarray
    """(n,) int64, 0 for an image without a label."""
    has_label: np.ndarray
    """(n,) bool."""
    others: Counter[str]
    """Files that are not images, by extension."""
    damage: str

    def __len__(self) -> int:
        return len(self.names)


def _index_shard(path: Path) -> _Found:
    endings = frozenset(map(os.fsencode, image_extensions()))
    images: list[Member] = []
    classes: dict[bytes, int] = {}
    others: Counter[str] = Counter()
    damage = ""
    try:
        opened = _Opened(os.fsencode(path))
        try:
            for member in members(opened.fd):
                key, ending = _parts(member.name)
                if key.endswith(b"/"):  # a hidden file, such as macOS adds to tars
                    continue
                if ending in endings:
                    images.append(member)
                elif ending == b".cls":
                    text = read_at(opened.fd, min(member.length, 64), member.offset)
                    classes[key] = _label(text, path, member.name)
                else:
                    others[os.fsdecode(ending)] += 1
        except TarDamage as error:
            if not error.position and str(error) != TRUNCATED:
                zipped = read_at(opened.fd, 2, 0) == b"\x1f\x8b"
                advice = "it is gzipped: gunzip it first" if zipped else "recreate it with tar"
                raise RequestError(f"the shard {path} is not a tar ({error}); {advice}") from None
            damage = f"{error} at byte {error.position:,}"
    except OSError as error:
        raise RequestError(f"cannot read the shard {path}: {error.strerror}") from None
    labels = [classes.get(_parts(image.name)[0]) for image in images]
    return _Found(
        path=path,
        names=NameTable.build([image.name for image in images]),
        places=np.array([image[1:] for image in images], dtype=np.int64).reshape(-1, 2),
        labels=np.array([label or 0 for label in labels], dtype=np.int64),
        has_label=np.array([label is not None for label in labels], dtype=bool),
        others=others,
        damage=damage,
    )


def _parts(name: bytes) -> tuple[bytes, bytes]:
    """b"set/0001.rgb.JPG" -> (b"set/0001", b".jpg"): up to the first dot of the base name, and from the last."""
    folder, _, base = name.rpartition(b"/")
    stem, dot, extension = base.partition(b".")
    return folder + b"/" + stem, b"." + extension.rpartition(b".")[2].lower() if dot else b""


def _label(text: bytes, path: Path, member: bytes) -> int:
    if not re.fullmatch(rb"\s*[+-]?\d{1,18}\s*", text):
        raise RequestError(
            f"the shard {path}: {os.fsdecode(member)} holds {text[:32].decode('utf-8', 'replace')!r}; expected the "
            f"number of a class, such as 7"
        )
    return int(text)


def _join(found: Sequence[_Found]) -> _Index:
    """Join all shards into one index; RequestError if only some images have labels."""
    has_label = np.concatenate([shard.has_label for shard in found])
    if has_label.any() and not has_label.all():
        shard = next(shard for shard in found if not shard.has_label.all())
        name = os.fsdecode(shard.names[int(shard.has_label.argmin())])
        raise RequestError(
            f"{(~has_label).sum():,} of {len(has_label):,} images have no label, the first is {shard.path}#{name}; "
            f"expected a .cls beside every image or beside none: add the missing ones, or remove all"
        )
    damages = [
        f"the shard {shard.path} is damaged ({shard.damage}): only the {len(shard):,} images before the damage are "
        f"used; fetch it again"
        for shard in found
        if shard.damage
    ]
    sizes = [len(shard) for shard in found]
    starts = np.cumsum([0] + [len(shard.names.blob) for shard in found])
    ends = [shard.names.ends + start for shard, start in zip(found, starts, strict=False)]
    places = np.concatenate([shard.places for shard in found])
    others: Counter[str] = sum((shard.others for shard in found), Counter())
    return _Index(
        members=NameTable(b"".join(shard.names.blob for shard in found), np.concatenate(ends)),
        damages=NameTable.build([os.fsencode(damage) for damage in damages]),
        shard=np.repeat(np.arange(len(found), dtype=np.int32), sizes),
        offsets=places[:, 0].copy(),
        lengths=places[:, 1].copy(),
        labels=np.concatenate([shard.labels for shard in found])[has_label],
        endings=NameTable.build([os.fsencode(ending) for ending in others]),
        counts=np.array(list(others.values()), dtype=np.int64),
    )


def _stat(path: Path, origin: str) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise RequestError(f"--data {origin}: cannot read the shard {path}: {error.strerror}") from None


def _nothing_found(origin: str, found: Sequence[_Found]) -> str:
    others: Counter[str] = sum((shard.others for shard in found), Counter())
    seen = indices.list_endings(others) or "none"
    damage = next((f"; {shard.path}: {shard.damage}" for shard in found if shard.damage), "")
    return (
        f"no images in the {len(found):,} shards of {origin} (files: {seen}{damage}); expected members such as "
        f"0001.jpg with an optional 0001.cls"
    )
