"""A directory of images: walked once in sorted order; its index is cached while no folder changes."""

from __future__ import annotations

import errno
import heapq
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmim.data.pillow import image_extensions
from fastmim.data.sources import index as indices
from fastmim.data.sources.files import Files
from fastmim.data.sources.index import NameTable
from fastmim.errors import RequestError, listed

_FORMAT = 3
# A folder that holds the first of these and another is a run's or a study's.
_CONFIG, _RUN_FILES = b"config.yaml", {b"metrics.jsonl", b"checkpoints", b"plan.json"}
# A folder below the root that was removed since its parent was listed, or that was a process's, in /proc.
_VANISHED = {errno.ENOENT, errno.ENOTDIR, errno.ESRCH}
_COMMON_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")


@dataclass(frozen=True, eq=False)
class _Index:
    paths: NameTable
    """Images, relative to the root, sorted by folder and then by name."""
    classes: NameTable
    """First-level folders, sorted; empty unless every image lies in one."""
    labels: np.ndarray
    """(N,) int64, positions in `classes`; (0,) if there are none."""
    folders: NameTable
    """All folders that were walked, relative to the root."""
    times: np.ndarray
    """(number of folders,) int64, their modification times in ns."""
    runs: NameTable
    """Run directories, relative to the root; nothing in them counts."""
    endings: NameTable
    """Of the files that are not images."""
    counts: np.ndarray
    """(number of endings,) int64, those files."""


def scan(directory: Path, *, origin: str, cache_dir: Path) -> Files:
    """Open a directory of images.

    Images are the files, at any depth, whose extension belongs to one of Pillow's image formats; hidden
    files and folders are skipped. Links to files and folders are followed, and each folder is visited
    once. Run directories below the root are passed over with a warning, so that a run's pictures never become its
    training images. If all images lie in subfolders, those of the first level are the classes.

    Raises:
        RequestError: A folder cannot be listed, or no images were found.
    """
    root = directory.resolve()
    cached = indices.cache_path(cache_dir / "scans", _FORMAT, os.fsencode(root), sorted(image_extensions()))
    index = indices.load(_Index, cached)
    if index is None or not _is_current(index, root):
        started = time.time_ns()
        index = _walk(os.fsencode(root), origin)
        if not len(index.paths):
            raise RequestError(_nothing_found(origin, indices.counted(index.endings, index.counts)))
        indices.save(index, cached, changed=index.times.max(), started=started)
    if num_runs := len(index.runs):
        some = f"{num_runs} run directories, such as" if num_runs > 1 else "the run directory"
        warnings.warn(
            f"--data {origin}: passed over {some} {os.fsdecode(index.runs[0])}, whose pictures are no training images",
            stacklevel=3,
        )
    classes = [os.fsdecode(name) for name in index.classes] or None
    return Files(
        origin,
        str(directory.absolute()),
        index.paths,
        index.labels if classes else None,
        classes,
        remarks=tuple(_remarks(index)),
    )


def _remarks(index: _Index) -> Iterator[str]:
    """Lines for a plan about what is not an image."""
    yield from indices.passed_over(indices.counted(index.endings, index.counts))
    tops = {folder.partition(b"/")[0] for folder in index.folders if folder}
    if len(index.classes) and (empty := sorted(tops - set(index.classes))):
        names = listed([os.fsdecode(name) for name in empty], most=5)
        yield f"note      no images in the folder{'s'[: len(empty) - 1]} {names}: not counted as classes"


def _walk(root: bytes, origin: str) -> _Index:
    """Index the images under `root`, and count the other files by extension."""
    found: list[tuple[bytes, list[bytes]]] = []
    others: Counter[str] = Counter()
    times: dict[bytes, int] = {}
    visited: set[tuple[int, int]] = set()
    # Links wait until all real folders are done, so that a folder reached both ways goes by its real name.
    folders: list[bytes] = [b""]
    runs: list[bytes] = []
    links: list[bytes] = []
    while folders or links:
        folder = folders.pop() if folders else heapq.heappop(links)
        try:
            status = os.stat(root + b"/" + folder)  # noqa: PTH116 - bytes
            if (status.st_dev, status.st_ino) in visited:
                continue
            listing = _list(root + b"/" + folder)  # after `stat`: a change in between shows as a newer time
        except OSError as error:
            if folder and error.errno in _VANISHED:
                continue
            shown = Path(origin, os.fsdecode(folder))
            raise RequestError(f"cannot list the folder {shown}: {error.strerror}") from None
        visited.add((status.st_dev, status.st_ino))
        if listing.is_run and folder:
            runs.append(folder)
            continue
        times[folder] = status.st_mtime_ns
        prefix = folder + b"/" if folder else b""
        folders += [prefix + name for name in listing.folders]
        for name in listing.links:
            heapq.heappush(links, prefix + name)
        if listing.images:
            found.append((folder, sorted(listing.images)))
        others += listing.others
    return _index(sorted(found), times, sorted(runs), others)


class _Listing(NamedTuple):
    images: list[bytes]
    folders: list[bytes]
    links: list[bytes]
    """To folders."""
    others: Counter[str]
    """Files that are not images, by extension."""
    is_run: bool


def _list(path: bytes) -> _Listing:
    """Sort the entries of one folder by kind."""
    endings = frozenset(map(os.fsencode, image_extensions()))
    images: list[bytes] = []
    folders: list[bytes] = []
    links: list[bytes] = []
    others: Counter[str] = Counter()
    names: set[bytes] = set()
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            ending = name[name.rfind(b".") :].lower() if b"." in name else b""
            if name.startswith(b"."):
                continue
            names.add(name)
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(name)
            elif ending in endings and (entry.is_symlink() or entry.is_file()):
                images.append(name)
            else:
                others[os.fsdecode(ending)] += 1
    return _Listing(images, folders, links, others, is_run=_CONFIG in names and bool(_RUN_FILES & names))


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _index(
    found: list[tuple[bytes, list[bytes]]], times: dict[bytes, int], runs: list[bytes], others: Counter[str]
) -> _Index:
    """Build the index from each folder's images; it has classes if no image lies directly in the root."""
    paths = [folder + b"/" + name if folder else name for folder, names in found for name in names]
    in_classes = bool(found) and found[0][0] != b""
    tops = [folder.partition(b"/")[0] for folder, _ in found] if in_classes else []
    classes = sorted(set(tops))
    number = {name: position for position, name in enumerate(classes)}
    sizes = [len(names) for _, names in found] if in_classes else []
    return _Index(
        paths=NameTable.build(paths),
        classes=NameTable.build(classes),
        labels=np.repeat(np.array([number[top] for top in tops], dtype=np.int64), sizes),
        folders=NameTable.build(list(times)),
        times=np.array(list(times.values()), dtype=np.int64),
        runs=NameTable.build(runs),
        endings=NameTable.build([os.fsencode(ending) for ending in others]),
        counts=np.array(list(others.values()), dtype=np.int64),
    )


def _is_current(index: _Index, root: Path) -> bool:
    base = os.fsencode(root) + b"/"
    try:
        pairs = zip(index.folders, index.times.tolist(), strict=True)
        return all(os.stat(base + folder).st_mtime_ns == at for folder, at in pairs)  # noqa: PTH116 - bytes
    except OSError:
        return False


def _nothing_found(origin: str, others: Counter[str]) -> str:
    num_files = others.total()
    common = ", ".join(end for end in _COMMON_ENDINGS if end in image_extensions())
    num_more = len(image_extensions()) - common.count(",") - 1
    expected = f"expected files that end in {common} or one of {num_more} other endings that Pillow reads"
    if not num_files:
        return f"no images in {origin}: it holds no files; {expected}"
    return f"no images among the {num_files:,} files in {origin} ({indices.list_endings(others)}); {expected}"
