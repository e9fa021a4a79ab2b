"""Indices of folders and shards on the disk: names and numbers in one .npz, never a pickle."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastmim.data.sources.files import PackedNames


def save(path: Path, names: Mapping[str, PackedNames], numbers: Mapping[str, np.ndarray]) -> None:
    """Write an index in one move; without a writable cache every start indexes anew, which is no error."""
    arrays = dict(numbers)
    for name, packed in names.items():
        arrays |= {name: np.frombuffer(packed.blob, dtype=np.uint8), f"{name}_ends": packed.ends}
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def load(path: Path, names: Sequence[str], numbers: Sequence[str]) -> dict[str, Any] | None:
    """What `save` wrote, each under its name; None where there is nothing or it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            packed = {name: PackedNames(arrays[name].tobytes(), arrays[f"{name}_ends"]) for name in names}
            return packed | {name: arrays[name] for name in numbers}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
