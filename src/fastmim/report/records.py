"""What every script here measures and writes with; the records go to `records/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastmim.bench import records
from fastmim.bench.records import alternate, ratios

__all__ = ["RECORDS", "alternate", "ratios", "write"]

RECORDS = Path(__file__).parent / "records"


def write(name: str, **what: Any) -> Path:
    """Write `records/<name>-<date>.json` (`fastmim.bench.records.write` has the arguments) and print its summary."""
    path = records.write(RECORDS, name, **what)
    print(json.dumps(what["summary"], indent=1))
    print(f"wrote {path.name}")
    return path
