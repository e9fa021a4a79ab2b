"""Records of `fastmim bench` as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastmim.bench.markdown import Table, number
from fastmim.bench.records import Record

WIDTH = 120
"""Columns of a printed table where there is no terminal."""


def table(record: Record) -> Table:
    """The table of a record of any part."""
    part = record["name"].removeprefix("bench-")
    return _TABLES[next(name for name in _TABLES if part.startswith(name))](record)


def spread(ratio: Mapping[str, float]) -> str:
    """Median and range of a ratio; a dash for the baseline itself."""
    if ratio["min"] == ratio["max"] == 1:
        return "-"
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


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


def _rates(record: Record, numbers: Mapping[str, float]) -> tuple[str, ...]:
    return (number(rate(numbers)), *([number(numbers["images_per_s"])] if on_cpu(record) else []))


def _rate_names(record: Record) -> tuple[str, ...]:
    return (clock(record), *(["images/s"] if on_cpu(record) else []))


def _data(record: Record) -> Table:
    config = record["config"]
    return Table(
        "Reading images",
        ("pipeline", "images/CPU-s", "images/s", "times faster"),
        [
            (name, *(number(n[key]) for key in ("images_per_cpu_s", "images_per_s")), spread(n["times_faster"]))
            for name, n in record["summary"]["pipelines"].items()
        ],
        f"{config['num_images']} JPEGs of {config['mean_bytes']['folder'] / 1000:.0f} KB, crops of "
        f"{config['crop_size']} px, no worker processes; ratios from CPU time. {where(record)}.",
    )


def _hog(record: Record) -> Table:
    return Table(
        "HOG target",
        ("form", *_rate_names(record), "MiB", "times faster"),
        [
            (name, *_rates(record, n), number(n["memory_mib"]), spread(n["times_faster"]))
            for name, n in record["summary"]["forms"].items()
        ],
        f"Batches of {record['config']['batch_size']} at {record['config']['img_size']} px. {where(record)}.",
    )


def _step(record: Record) -> Table:
    rows = []
    for case, found in record["summary"]["cases"].items():
        rows.append((case, *("" for _ in range(4 + on_cpu(record)))))
        for form, n in found["forms"].items():
            share = f"{n['share_of_peak']:.0%}"
            memory = number(n["memory_mib"])
            rows.append((f"  {form}", *_rates(record, n), memory, share, spread(n["times_faster"])))
    peaks = ", ".join(f"{name} {value:.3g}" for name, value in record["summary"]["peak_tflops"].items())
    return Table(
        "Training step",
        ("step", *_rate_names(record), "MiB", "of peak", "times faster"),
        rows,
        f"Batches of {record['config']['batch_size']}; MiB: activations and gradients; of peak: the model's "
        f"throughput over a large matrix product's (TFLOP/s: {peaks}); ratios from {_ratio_clock(record)}. "
        f"{where(record)}.",
    )


def _methods(record: Record) -> Table:
    unit = "core-hours" if on_cpu(record) else "device-hours"
    return Table(
        f"Methods on {record['summary']['backbone']}",
        ("method", *_rate_names(record), "GFLOP forward", "MiB", f"{unit} an epoch", "times FastMIM's"),
        [
            (
                name,
                *_rates(record, n),
                number(n["gflop_forward"]),
                number(n["memory_mib"]),
                number(n["device_hours_per_epoch"]),
                spread(n["times_slower"]),
            )
            for name, n in record["summary"]["methods"].items()
        ],
        f"All by fastmim in {record['config']['form'].removeprefix('fastmim ')}; an epoch is "
        f"{record['config']['epoch']:,} images; ratios from {_ratio_clock(record)}. {where(record)}.",
    )


def _end_to_end(record: Record) -> Table:
    return Table(
        "End to end",
        ("source", "images/s", "waiting for data", "share of memory's rate"),
        [
            (name, number(n["images_per_s"]), f"{n['data_wait_share']:.0%}", spread(n["of_memory"]))
            for name, n in record["summary"]["tiers"].items()
        ],
        f"{record['config']['backbone']} {record['config']['backbone_args'] or ''} at 128 px, "
        f"data workers: {record['config']['num_workers']}; by wall-clock time. {where(record)}.",
    )


def _ratio_clock(record: Record) -> str:
    return "CPU time" if on_cpu(record) else "wall-clock time"


_TABLES: dict[str, Callable[[Record], Table]] = {
    "data": _data,
    "hog": _hog,
    "step": _step,
    "methods": _methods,
    "end-to-end": _end_to_end,
}
