"""100 small photographs, and their pack."""

from __future__ import annotations

from pathlib import Path

import pytest

from packs import pack
from pictures import encode, photograph


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 small photographs."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(100):
        tile = photograph().crop((4 * number, 50, 4 * number + 80, 50 + 60))
        (root / f"{number:03}.png").write_bytes(encode(tile, "PNG"))
    return root


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted pack, which every interrupted one must equal."""
    out = tmp_path_factory.mktemp("whole") / "packed"
    assert pack(folder, out).finished
    return out
