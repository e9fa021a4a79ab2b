"""Tar shards by name: one file, a pattern such as {000..127}.tar, or a directory that holds only shards."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from contextlib import suppress
from pathlib import Path

from fastmim.data.pillow import image_extensions
from fastmim.errors import RequestError
from fastmim.system.files import exists, expanded, is_folder

_UNPACKERS = {"gz": "gunzip", "tgz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd"}
_MAX_SHARDS = 1_000_000


def find_shards(data: str) -> list[Path] | None:
    """Find the shards that `--data` names; None if it names something else.

    It may be one .tar, a pattern with {000..127}, {a,b}, *, ? or [], or a directory that holds .tar files and
    neither images nor folders.

    Raises:
        RequestError: A pattern matches nothing, a shard is missing, or the shards are compressed.
    """
    path = expanded(data)
    if is_folder(path):
        return _in_directory(path)
    if compressed := re.search(r"\.(?:tar\.(gz|bz2|xz|zst)|(tgz))$", data, re.IGNORECASE):
        command = _UNPACKERS[compressed[1] or compressed[2]]
        raise RequestError(f"--data {data} is compressed, so its images cannot be read at random; {command} it first")
    if path.suffix.lower() != ".tar":
        return None
    if exists(path):
        return [path]
    names = _expand(str(path), data)
    if names == [str(path)] and not glob.has_magic(data):
        return None  # a plain name: `open_source` reports the missing file
    paths: list[Path] = []
    for name in names:
        for path in _matches(name):
            if not (exists(path) and path.is_file()):
                raise RequestError(
                    f"--data {data}: no such shard: {path} (of {len(names):,}); correct the range, or fetch the shard"
                )
            paths.append(path)
    if not paths:
        raise RequestError(f"--data {data}: no file matches the pattern; expected .tar shards: correct it")
    return paths


def _matches(name: str) -> list[Path]:
    if not glob.has_magic(name):
        return [Path(name)]
    return [Path(match) for match in sorted(glob.glob(name))]  # noqa: PTH207 - an absolute pattern may be given


def _in_directory(directory: Path) -> list[Path] | None:
    tars, endings = [], image_extensions()
    with suppress(OSError), os.scandir(os.fsencode(directory)) as entries:  # as bytes: names of any encoding
        for entry in entries:
            name = os.fsdecode(entry.name)
            ending = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if ending in endings or entry.is_dir():
                return None
            if ending == ".tar":
                tars.append(directory / name)
    return sorted(tars) or None


def _expand(pattern: str, data: str) -> list[str]:
    """Expand {000..127} and {a,b} as a shell does."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(part, data) if number % 2 else [part] for number, part in enumerate(parts)]
    if math.prod(map(len, choices)) > _MAX_SHARDS:
        raise RequestError(f"--data {data} names more than {_MAX_SHARDS:,} shards; correct the range")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(part: str, data: str) -> list[str]:
    """What stands for the text between two braces."""
    if span := re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", part):
        first, last = map(int, span.groups())
        if abs(last - first) >= _MAX_SHARDS:
            raise RequestError(f"--data {data}: {{{part}}} is more than {_MAX_SHARDS:,} shards; correct the range")
        padded = any(len(end) > 1 and end.startswith("0") for end in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        step = 1 if first <= last else -1
        return [f"{value:0{width}d}" for value in range(first, last + step, step)]
    if "," in part:
        return part.split(",")
    raise RequestError(f"--data {data}: {{{part}}} is not understood; expected {{000..127}} or {{a,b}}")
