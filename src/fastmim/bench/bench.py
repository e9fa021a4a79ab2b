"""`fastmim bench`: every part in turn, its record, and tables and chart from the records."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from fastmim.backbone import describe
from fastmim.bench import chart, records, tables
from fastmim.bench.settings import PARTS, BenchConfig, CostConfig
from fastmim.bench.suite import Parts, Scale, record_name
from fastmim.errors import RequestError
from fastmim.system import devices

THREADS = 1
"""A CPU's time on one thread means the same however busy the other cores are."""

_WIDTH = 120
"""Columns of a table where there is no terminal to ask."""


def bench(config: BenchConfig, *, console: Console | None = None) -> list[Path]:
    """Measure, write a record for each part, and print tables made from the records.

    Returns:
        The records.

    Raises:
        RequestError: an unknown backbone, a device that is not there, a directory that cannot be written.
    """
    console = console or Console(highlight=False)
    device = str(devices.resolve_device(config.device))
    names = config.backbone_names(device)
    for name in names:
        describe(name, 128)
    records.prepare(config.records)
    paths, start, threads = [], time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = Parts(config.records, Scale.of(config, device), names, Path(folder), console)
            with parts.status:
                for part in config.parts():
                    with parts.timing(part):
                        paths.append(parts.run[part]())
    finally:
        torch.set_num_threads(threads)
    _present(paths, config.records, device, console)
    console.print(f"{(time.monotonic() - start) / 60:.1f} minutes in all", soft_wrap=True)
    return paths


def cost(config: CostConfig) -> None:
    """Print how long a training would take.

    Raises:
        RequestError: there is no record to tell it from.
    """
    from fastmim.bench import cost as costs

    console = Console(highlight=False)
    for table in costs.estimate(config):
        console.print(table.rich(), width=None if console.is_terminal else _WIDTH)


def _present(paths: list[Path], folder: Path, device: str, console: Console) -> None:
    """Print the tables of new records; write the tables and the chart of the newest of every part beside them."""
    for new in paths:
        table = tables.table(json.loads(new.read_text()))
        console.print(table.rich(), width=None if console.is_terminal else _WIDTH)
    names = [record_name(part, device) for part in PARTS]
    found = [json.loads(path.read_text()) for name in names if (path := records.newest(folder, name))]
    name = "bench" if device == "cpu" else f"bench-{device.partition(':')[0]}"
    (folder / f"{name}.md").write_text("\n".join(tables.table(record).markdown() for record in found))
    written = [*paths, folder / f"{name}.md"]
    try:
        chart.draw(found, folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    except RequestError as error:  # the numbers are worth more than the picture
        console.print(str(error), soft_wrap=True)
    for file in written:
        console.print(f"wrote {file}", soft_wrap=True)
