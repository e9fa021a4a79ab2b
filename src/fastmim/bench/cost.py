"""How long a training would take, from what `fastmim bench` has measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.bench import records, tables
from fastmim.bench.settings import CostConfig
from fastmim.errors import RequestError


@dataclass(frozen=True)
class Cost:
    """One row of the estimate."""

    what: str
    images_per_s: float
    hours: float


def estimate(config: CostConfig) -> list[tables.Table]:
    """A table for each record: device-hours of every step that it holds.

    Raises:
        RequestError: no record, or one that is not of `fastmim bench`.
    """
    if config.record is not None:
        paths = [config.record]
    else:
        names = [f"bench-{part}{kind}" for kind in ("", "-cuda") for part in ("step", "methods")]
        paths = [path for name in names if (path := records.newest(config.records, name))]
        if not paths:
            raise RequestError(
                f"records is {config.records}, which holds no bench-step-DATE.json; expected records of fastmim bench: "
                f"run it first, or name one with --record"
            )
    return [_table(read(path), config) for path in paths]


def rows(record: dict[str, Any], images: int, epochs: float) -> list[Cost]:
    """Images per second by the clock that counts, and device-hours, of every step in a record."""
    summary = record["summary"]
    if "cases" in summary:
        steps = {
            f"{case}: {form}": numbers
            for case, found in summary["cases"].items()
            for form, numbers in found["forms"].items()
        }
    else:
        steps = {f"{summary['backbone']}: {method}": numbers for method, numbers in summary["methods"].items()}
    rates = {name: tables.rate(numbers) for name, numbers in steps.items()}
    return [Cost(name, rate, images * epochs / rate / 3600) for name, rate in rates.items()]


def read(path: Path) -> dict[str, Any]:
    """A record of training steps.

    Raises:
        RequestError: it is none.
    """
    try:
        record = json.loads(path.read_text())
        known = "cases" in record["summary"] or "methods" in record["summary"]
    except OSError as error:
        raise RequestError(f"record is {path}: {error.strerror}; expected a record of fastmim bench") from None
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise RequestError(f"record is {path}; expected a bench-step or bench-methods record of fastmim bench")
    return record


def _table(record: dict[str, Any], config: CostConfig) -> tables.Table:
    on_cpu = record["hardware"]["device"] == "cpu"
    unit = "core-hours" if on_cpu else "device-hours"
    return tables.Table(
        f"{config.images:,} images x {config.epochs:g} epochs, from {record['name']}-{record['date']}",
        ("step", tables.clock(record), unit),
        [
            (cost.what, tables.number(cost.images_per_s), tables.number(cost.hours))
            for cost in rows(record, config.images, config.epochs)
        ],
        note=f"{tables.where(record)}; the training step alone, as batches come without waiting.",
    )
