"""Pre-trainings that take a second, and what they leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastmim
from conftest import SMALL


def pretrain(out: Path, data: Path, **settings: Any) -> Any:
    return fastmim.pretrain(**(SMALL | {"data": str(data), "out": out} | settings))


def lines(out: Path) -> list[str]:
    path = out / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []
