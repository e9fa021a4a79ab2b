"""The device-hours of a training, estimated from records of `fastmim bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fastmim.bench import records, tables
from fastmim.bench.markdown import Table, number
from fastmim.bench.settings import CostConfig
from fastmim.errors import RequestError, RunError
from fastmim.system import files


@dataclass(frozen=True)
class Cost:
    """A row of the estimate."""

    step: str
    images_per_s: float
    hours: float


def print_cost(config: CostConfig) -> None:
    """Print how long a training would take.

    Raises:
        RequestError: as `estimate`.
    """
    console = Console(highlight=False)
    for table in estimate(config):
        table.print(console, width=tables.WIDTH)


def estimate(config: CostConfig) -> list[Table]:
    """A table for each record: device-hours with every step in it.

    Raises:
        RequestError: there is no record, or it is not one of `fastmim bench`.
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
    """Images per second and device-hours of every step in a record, by CPU time on a CPU."""
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
    """Read a record of training steps.

    Raises:
        RequestError: the file is something else or unreadable.
    """
    try:
        record = files.read_json(path)
        known = "cases" in record["summary"] or "methods" in record["summary"]
    except OSError as error:
        raise RequestError(f"record is {path}: {error.strerror}; expected a record of fastmim bench") from None
    except (RunError, KeyError, TypeError):  # no JSON, or other JSON
        known = False
    if not known:
        raise RequestError(f"record is {path}; expected a bench-step or bench-methods record of fastmim bench")
    return record


def _table(record: dict[str, Any], config: CostConfig) -> Table:
    on_cpu = record["hardware"]["device"] == "cpu"
    unit = "core-hours" if on_cpu else "device-hours"
    return Table(
        f"{config.images:,} images x {config.epochs:g} epochs, by {record['name']}-{record['date']}",
        ("step", tables.clock(record), unit),
        [
            (cost.step, number(cost.images_per_s), number(cost.hours))
            for cost in rows(record, config.images, config.epochs)
        ],
        note=f"{tables.where(record)}; the training step alone, without waiting for data.",
    )
