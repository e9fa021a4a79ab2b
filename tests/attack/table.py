"""The table at the end, and its JSON record."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def line(row: dict[str, Any]) -> str:
    """One promise in one line."""
    short = f" (of {row['planned']:,} cases only {row['cases']:,} in time)" if row["cases"] < row["planned"] else ""
    return (
        f"{row['name']:10}{row['cases']:>7,}{row['tries']:>9,}{row['failures']:>10,}{row['tracebacks']:>12,}"
        f"{row['seconds']:>9,.0f}  {row['promise']}{short}"
    )


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text."""
    head = f"{'':10}{'cases':>7}{'tries':>9}{'failures':>10}{'tracebacks':>12}{'seconds':>9}  promise"
    return "\n".join(["", head, *map(line, rows)])


def write(path: Path, rows: Sequence[dict[str, Any]], *, scale: float, seed: int, seconds: float) -> None:
    """Write the table, the failing cases and the circumstances as JSON.

    A record with the same scale and seed keeps the promises that were not tried again.
    """
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = [row | {"commit": commit} for row in rows]
    before = json.loads(path.read_text()) if path.exists() else {}
    if (before.get("scale"), before.get("seed")) == (scale, seed):
        names = {row["name"] for row in rows}
        rows = [*(row for row in before["promises"] if row["name"] not in names), *rows]
        seconds += before["seconds"]
    content = {
        "what": "attack: promises under kills, damage and hostile input",
        "date": datetime.date.today().isoformat(),
        "command": f"make attack SCALE={scale:g} SEED={seed}",
        "commit": commit,
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("fastmim", "torch", "timm", "pillow", "numpy")}
        | {"python": platform.python_version()},
        "scale": scale,
        "seed": seed,
        "seconds": round(seconds, 1),
        "promises": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
