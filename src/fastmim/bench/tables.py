"""Records of `fastmim bench` as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastmim.bench.markdown import Table, number
from fastmim.bench.records import Record

WIDTH = 132
"""Columns of a printed table where there is no terminal."""

Columns = dict[str, Callable[[Any], str]]
"""The function that makes a column's cell from a row's numbers, by the column's name."""

_MEMORY: Columns = {"MiB": lambda n: number(n.get("memory_mib"))}
_FASTER: Columns = {"times faster": lambda n: spread(n.get("times_faster"))}


def table(record: Record) -> Table:
    """The table of a record of any part."""
    part = record["name"].removeprefix("bench-")
    return _TABLES[next(name for name in _TABLES if part.startswith(name))](record)


def spread(ratio: Mapping[str, float] | None) -> str:
    """Median and range of a ratio; a dash for the baseline itself, and for what has none."""
    if ratio is None or is_baseline(ratio):
        return "-"
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def is_baseline(ratio: Mapping[str, float] | None) -> bool:
    """Whether it is the ratio of a form to itself."""
    return ratio is not None and ratio["min"] == ratio["max"] == 1


def rate(numbers: Mapping[str, float]) -> float:
    """Images per second: of CPU time on a CPU, else of wall-clock time."""
    return numbers.get("images_per_cpu_s", numbers["images_per_s"])


def clock(record: Record) -> str:
    """The unit of `rate`."""
    return "images/CPU-s" if on_cpu(record) else "images/s"


def on_cpu(record: Record) -> bool:
    """Whether the record was measured on a CPU."""
    return record["hardware"]["device"] == "cpu"


def where(record: Record) -> str:
    """Hardware, torch version and date in words."""
    hardware = record["hardware"]
    name = hardware.get("accelerator") or f"{hardware['processor']}, {record['config']['threads']} thread"
    return f"{name}, torch {record['versions']['torch']}, {record['date']}"


def _rates(record: Record) -> Columns:
    return {clock(record): lambda n: number(rate(n)), "images/s": lambda n: number(n["images_per_s"])}


def _table(title: str, first: str, found: Mapping[str, Any], columns: Columns, note: str) -> Table:
    """A table with a row for each name: the name, then a cell from each column."""
    rows = [(name, *(cell(numbers) for cell in columns.values())) for name, numbers in found.items()]
    return Table(title, (first, *columns), rows, note)


def _data(record: Record) -> Table:
    config = record["config"]
    return _table(
        "Reading images",
        "pipeline",
        record["summary"]["pipelines"],
        _rates(record) | _FASTER,
        f"{config['num_images']} JPEGs of {config['mean_bytes']['folder'] / 1000:.0f} KB, crops of "
        f"{config['crop_size']} px, no worker processes; fastmim leaves flip and normalisation to the device, but for "
        f"float batches; ratios from CPU time. {where(record)}.",
    )


def _hog(record: Record) -> Table:
    return _table(
        "HOG target",
        "form",
        record["summary"]["forms"],
        _rates(record) | _MEMORY | _FASTER,
        f"Batches of {record['config']['batch_size']} at {record['config']['img_size']} px. {where(record)}.",
    )


def _steps(title: str, record: Record) -> Table:
    columns = _rates(record) | _MEMORY | {"of peak": lambda n: _share(n.get("share_of_peak"))} | _FASTER
    rows: list[tuple[str, ...]] = []
    for case, found in record["summary"]["cases"].items():
        rows.append((case, *("" for _ in columns)))
        rows += [(f"  {form}", *(cell(n) for cell in columns.values())) for form, n in found["forms"].items()]
    peaks = ", ".join(f"{name} {value:.3g}" for name, value in record["summary"]["peak_tflops"].items())
    return Table(
        title,
        ("step", *columns),
        rows,
        f"Batches of {record['config']['batch_size']}; MiB: activations and gradients; of peak: the model's "
        f"throughput over a large matrix product's (TFLOP/s: {peaks}); ratios from {_ratio_clock(record)}. "
        f"{where(record)}.",
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _end_to_end(record: Record) -> Table:
    return _table(
        "End to end",
        "source",
        record["summary"]["tiers"],
        {
            "images/s": lambda n: number(n["images_per_s"]),
            "waiting for data": lambda n: f"{n['data_wait_share']:.0%}",
            "share of memory's rate": lambda n: spread(n["of_memory"]),
        },
        f"{record['config']['backbone']} {record['config']['backbone_args'] or ''} at 128 px, "
        f"data workers: {record['config']['num_workers']}; by wall-clock time. {where(record)}.",
    )


def _ratio_clock(record: Record) -> str:
    return "CPU time" if on_cpu(record) else "wall-clock time"


_TABLES: dict[str, Callable[[Record], Table]] = {
    "data": _data,
    "hog": _hog,
    "step": partial(_steps, "Training step"),
    "finetune": partial(_steps, "Fine-tuning"),
    "end-to-end": _end_to_end,
}
