"""`fastmim bench`: measures the parts in turn, writes a record of each, and makes tables and a chart from them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from fastmim.backbone import describe
from fastmim.bench import chart, records, tables
from fastmim.bench.parts import Parts, record_name
from fastmim.bench.settings import PARTS, BenchConfig
from fastmim.errors import RequestError
from fastmim.system import devices, display, files

THREADS = 1
"""CPU time on one thread depends little on how busy the other cores are."""


def bench(config: BenchConfig, *, console: Console | None = None) -> list[Path]:
    """Measure the parts, write a record of each, and print their tables.

    Returns:
        The records' files.

    Raises:
        RequestError: a backbone is unknown, a device is missing, or the directory is not writable.
    """
    console = console or Console(highlight=False)
    device = str(devices.resolve_device(config.device))
    for name in config.backbone_names(device):
        describe(name, 128)
    records.prepare(config.records)
    paths, start, threads = [], time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = Parts(config, device, Path(folder), console)
            with parts.status:
                for part in config.parts():
                    with parts.timing(part):
                        paths.append(parts.run[part]())
    finally:
        torch.set_num_threads(threads)
    _present(paths, config.records, device, console)
    display.say(console, f"{(time.monotonic() - start) / 60:.1f} minutes in all")
    return paths


def _present(paths: list[Path], folder: Path, device: str, console: Console) -> None:
    """Print the tables of new records; beside them write the tables and the chart of each part's newest record."""
    for new in paths:
        tables.table(files.read_json(new)).print(console, width=tables.WIDTH)
    names = [record_name(part, device) for part in PARTS]
    found = [files.read_json(path) for name in names if (path := records.newest(folder, name))]
    name = "bench" if device == "cpu" else f"bench-{device.partition(':')[0]}"
    text = "\n".join(tables.table(record).markdown() for record in found)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    written = [*paths, folder / f"{name}.md"]
    try:
        chart.draw(found, folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    except RequestError as error:  # the tables are useful without it
        display.say(console, str(error))
    for file in written:
        display.say(console, f"wrote {file}")
