"""The device-hours of a training, estimated from records of `fastmim bench`, or from a trial of the step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastmim.bench import records, scaling, tables
from fastmim.bench.markdown import Table, number
from fastmim.bench.settings import CostConfig
from fastmim.data import augment
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError, RunError
from fastmim.method.mim import MIM
from fastmim.method.settings import PretrainConfig
from fastmim.system import devices, files
from fastmim.system.machine import hardware
from fastmim.training.duration import seconds_per_image
from fastmim.training.loop import make_forward


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
    """A table for each record, with the device-hours of every step in it; or one of a step that is tried now.

    Raises:
        RequestError: the record is not one of `fastmim bench`, or the backbone or device of a trial cannot be had.
    """
    names = [f"bench-{part}{kind}" for kind in ("", "-cuda") for part in ("step", "methods")]
    if config.record is not None:
        paths = [config.record]
    elif config.backbone is None:
        paths = [path for name in names if (path := records.newest(config.records, name))]
    else:
        paths = []
    read_records = [read(path) for path in paths]
    if config.devices > 1:
        read_records = [record for record in read_records if scaling.cases(record)]
        return [_scaled(record, config) for record in read_records] or [_scaled_trial(config)]
    return [_table(record, config) for record in read_records] or [_trial(config)]


def _trial(config: CostConfig) -> Table:
    """The hours by a trial of pre-training's step with its default settings."""
    name, seconds, note = _try_step(config)[1:]
    hours = config.images * config.epochs * seconds / 3600
    return Table(
        f"{config.images:,} images x {config.epochs:g} epochs, by a trial on this machine",
        ("step", "images/s", "hours"),
        [(name, number(1 / seconds), number(hours))],
        note=f"{note} Data, optimiser and evaluations come on top.",
    )


def _try_step(config: CostConfig) -> tuple[MIM, str, float, str]:
    """The model, its name with the image size, seconds per image, and a note on how they were measured."""
    device, name = devices.resolve_device(config.device), config.backbone or PretrainConfig.backbone
    bf16 = devices.resolve_bf16("auto", device)
    model = MIM(name, img_size=config.img_size).to(device)
    mean, std = (torch.tensor(numbers, device=device) for numbers in (IMAGENET_MEAN, IMAGENET_STD))

    def blank_batch(num_images: int) -> dict[str, Any]:
        images = torch.zeros(num_images, 3, config.img_size, config.img_size, dtype=torch.uint8, device=device)
        return {"images": images, "keys": torch.zeros(num_images, dtype=torch.int64, device=device)}

    forward = make_forward(model, lambda batch: augment.prepare(batch, mean, std), device, bf16=bf16, compile=False)
    seconds, num_images = seconds_per_image(model, forward, blank_batch, most=256, device=device)
    machine = records.machine({"hardware": hardware(str(device))})
    note = (
        f"{machine}, {device}, {'bf16' if bf16 else 'float32'}, not compiled: forward and backward pass on "
        f"{num_images} images."
    )
    return model, f"{name}, {config.img_size} px", seconds, note


def _scaled(record: dict[str, Any], config: CostConfig) -> Table:
    """The hours of every network in a record of steps, on several devices."""
    steps = scaling.steps(record)
    return _predicted(steps, f"{record['name']}-{record['date']}", tables.where(record), config)


def _scaled_trial(config: CostConfig) -> Table:
    model, name, seconds, note = _try_step(config)
    step = scaling.fit({1: 1 / seconds}, scaling.gradient_bytes(model))
    return _predicted({name: step}, "a trial on this machine", note.removesuffix("."), config)


def _predicted(steps: dict[str, scaling.Step], source: str, where: str, config: CostConfig) -> Table:
    cluster = scaling.Cluster(
        config.devices, config.devices_per_node, config.inside, config.between, loader=config.loader
    )
    found = {name: scaling.predict(step, cluster, config.batch_size) for name, step in steps.items()}
    alone = {name: scaling.predict(step, scaling.Cluster(1), config.batch_size) for name, step in steps.items()}
    total = config.images * config.epochs
    return Table(
        f"{config.images:,} images x {config.epochs:g} epochs on {config.devices} devices, predicted from {source}",
        ("step", "images/s", "of linear", "bound by", "hours"),
        [
            (
                name,
                number(step.images_per_s),
                f"{step.images_per_s / (config.devices * alone[name].images_per_s):.0%}",
                step.bound,
                number(total / step.images_per_s / 3600),
            )
            for name, step in found.items()
        ],
        note=f"{where}; {config.batch_size} images a step. A model on paper, not a measurement: docs/scaling.md.",
    )


def rows(record: dict[str, Any], images: int, epochs: float) -> list[Cost]:
    """Images per second and device-hours of every step in a record, by CPU time on a CPU."""
    summary = record["summary"]
    if cases := scaling.cases(record):
        steps = {
            f"{case}: {form}": numbers for case, found in cases.items() for form, numbers in found["forms"].items()
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
        known = bool(scaling.cases(record)) or "methods" in record["summary"]
    except OSError as error:
        raise RequestError(f"record is {path}: {error.strerror}; expected a record of fastmim bench") from None
    except (RunError, KeyError, TypeError, AttributeError):  # no JSON, or other JSON
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
