"""What tests of packing share: a pack of 100 small photographs, and when two packs are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastmim.data.packs import packing

FILES = ["images.bin", "index.npy", "names.bin", "manifest.json"]


def pack(folder: Path, out: Path, **options: Any) -> packing.Packing:
    return packing.pack(folder, out, **({"num_workers": 0, "codec": "raw", "short_side": 48} | options))


def assert_same(a: Path, b: Path) -> None:
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
