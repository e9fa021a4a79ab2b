"""Records of measurements: one dated JSON file a claim, with the command, the machine and the raw numbers."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastmim.errors import RequestError
from fastmim.system import files
from fastmim.system.machine import hardware

PACKAGES = ("fastmim", "torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg")

Record = Mapping[str, Any]


def make(
    name: str,
    *,
    claim: str,
    config: dict[str, Any],
    raw: dict[str, Any],
    summary: dict[str, Any],
    device: str = "cpu",
    command: str | None = None,
) -> dict[str, Any]:
    """Build a record of today.

    Args:
        name: The record's name; its file is `<name>-<date>.json`.
        claim: What the numbers are to show.
        config: What was measured, and how often.
        raw: The numbers of every round.
        summary: Medians, ratios and ranges.
        device: Where it was measured, such as "cpu" or "cuda:0".
        command: The command that repeats it. [default: this process's]
    """
    return {
        "name": name,
        "claim": claim,
        "date": date.today().isoformat(),
        "command": command or this_command(),
        "hardware": hardware(device),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "config": config,
        "summary": summary,
        "raw": raw,
    }


def save(folder: Path, record: Record) -> Path:
    """Write `<folder>/<name>-<date>.json`, replacing an earlier record of the same day.

    Raises:
        RequestError: the folder is not writable.
    """
    prepare(folder)
    path = folder / f"{record['name']}-{record['date']}.json"
    files.write_json(path, record)
    return path


def write(folder: Path, name: str, *, show: bool = False, summary: dict[str, Any], **what: Any) -> Path:
    """Make and save a record, its summary rounded; `show` prints the summary and the file's name."""
    record = make(name, summary=rounded(summary), **what)
    path = save(folder, record)
    if show:
        print(f"{json.dumps(record['summary'], indent=1)}\nwrote {path.name}")
    return path


def prepare(folder: Path) -> None:
    """Make the folder for records.

    Raises:
        RequestError: it is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RequestError(f"records is {folder}: {error.strerror}; expected a writable directory") from None


def newest(folder: Path, name: str) -> Path | None:
    """The newest record of that name."""
    return max(folder.glob(f"{name}-[0-9]*.json"), default=None)


def rounded(value: Any) -> Any:
    """Round all floats in nested dictionaries to five significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def this_command() -> str:
    """The command line of this process, without the machine's own paths."""
    script = Path(sys.argv[0])
    start = f"python {script.as_posix()}" if script.suffix == ".py" and script.stem != "__main__" else "fastmim"
    return " ".join([start, *sys.argv[1:]])


def machine(record: Record) -> str:
    """A record's accelerator, or its processor and number of cores."""
    about = record["hardware"]
    return str(about.get("accelerator", f"{about['processor']}, {about['cores']} cores"))
