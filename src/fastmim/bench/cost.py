"""The device-hours of a training, estimated from records of `fastmim bench`, or from a trial of the step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastmim import config as configs
from fastmim.bench import records, scaling, tables
from fastmim.bench.markdown import Table, number
from fastmim.bench.settings import CostConfig
from fastmim.config import takes
from fastmim.data import augment
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError, RunError
from fastmim.method.mim import MIM
from fastmim.method.settings import PretrainConfig
from fastmim.system import devices, files
from fastmim.system.machine import hardware
from fastmim.training.duration import seconds_per_image
from fastmim.training.loop import make_forward

_TRIAL = "a trial on this machine"


@dataclass(frozen=True)
class Cost:
    """The cost of a training with one training step."""

    step: str
    """The network with its image size, target and masking, or its method."""
    images_per_s: float
    """Of CPU time, if the hours are core-hours."""
    hours: float
    unit: str
    """What is counted: "hours" of the clock, "device-hours", or "core-hours" of a record that was made on a CPU."""
    source: str
    """The record, or "a trial on this machine"."""
    of_linear: float | None = None
    """On several devices, the predicted share of a linear speed-up."""
    bound_by: str | None = None
    """On several devices, what limits the speed: "compute", "gradients" or "data"."""


@dataclass(frozen=True)
class _Estimate:
    """The costs from one source, as a table shows them."""

    title: str
    rows: list[Cost]
    note: str
    rate: str = "images/s"

    def table(self) -> Table:
        several = self.rows[0].of_linear is not None
        header = ("step", self.rate, *(("of linear", "bound by") if several else ()), self.rows[0].unit)
        cells = [(row.step, number(row.images_per_s), *_scaling(row), number(row.hours)) for row in self.rows]
        return Table(self.title, header, cells, note=self.note)


def _scaling(row: Cost) -> tuple[str, ...]:
    return () if row.of_linear is None else (f"{row.of_linear:.0%}", row.bound_by or "")


@takes(CostConfig)
def cost(**settings: Any) -> list[Cost]:
    """Estimate how long a training takes, from records of `fastmim bench`, or else from a step that is tried now.

    Args:
        settings: Fields of `CostConfig` (`fastmim cost --help` lists them).

    Returns:
        A row for each training step that was measured.

    Raises:
        RequestError: the record is not one of `fastmim bench`, or the backbone or device of a trial cannot be had.

    Example:
        >>> rows = fastmim.cost(images=1_281_167, epochs=800, backbone="vit_small_patch16_224")
        >>> print(f"{rows[0].hours:,.0f} {rows[0].unit} with {rows[0].step}")
    """
    return [row for estimate in _estimates(configs.build(CostConfig, settings)) for row in estimate.rows]


def print_cost(config: CostConfig) -> None:
    """Print what `cost` returns, with a table for each source."""
    console = Console(highlight=False)
    for estimate in _estimates(config):
        estimate.table().print(console, width=tables.WIDTH)


def _estimates(config: CostConfig) -> list[_Estimate]:
    """One for each record, or one of a step that is tried now."""
    names = [f"bench-step{kind}" for kind in ("", "-cuda")]
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
    return [_recorded(record, config) for record in read_records] or [_trial(config)]


def _trial(config: CostConfig) -> _Estimate:
    """By a trial of pre-training's step with its default settings."""
    name, seconds, note = _try_step(config)[1:]
    hours = config.images * config.epochs * seconds / 3600
    return _Estimate(
        f"{config.images:,} images x {config.epochs:g} epochs, by a trial on this machine",
        [Cost(name, 1 / seconds, hours, "hours", _TRIAL)],
        f"{note} Data, optimiser and evaluations come on top.",
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


def _scaled(record: dict[str, Any], config: CostConfig) -> _Estimate:
    """Of every network in a record of steps, on several devices."""
    return _predicted(scaling.steps(record), _name(record), tables.where(record), config)


def _scaled_trial(config: CostConfig) -> _Estimate:
    model, name, seconds, note = _try_step(config)
    step = scaling.fit({1: 1 / seconds}, scaling.gradient_bytes(model))
    return _predicted({name: step}, _TRIAL, note.removesuffix("."), config)


def _predicted(steps: dict[str, scaling.Step], source: str, where: str, config: CostConfig) -> _Estimate:
    cluster = scaling.Cluster(
        config.devices, config.devices_per_node, config.inside, config.between, loader=config.loader
    )
    rows = []
    for name, step in steps.items():
        found = scaling.predict(step, cluster, config.batch_size)
        alone = scaling.predict(step, scaling.Cluster(1), config.batch_size)
        hours = config.images * config.epochs / found.images_per_s / 3600
        share = found.images_per_s / (config.devices * alone.images_per_s)
        rows.append(Cost(name, found.images_per_s, hours, "hours", source, share, found.bound))
    return _Estimate(
        f"{config.images:,} images x {config.epochs:g} epochs on {config.devices} devices, predicted from {source}",
        rows,
        f"{where}; {config.batch_size} images a step. A model on paper, not a measurement: docs/scaling.md.",
    )


def _recorded(record: dict[str, Any], config: CostConfig) -> _Estimate:
    """Of every step in a record, by CPU time on a CPU."""
    steps = {
        f"{case}: {form}": numbers
        for case, found in scaling.cases(record).items()
        for form, numbers in found["forms"].items()
    }
    unit, num_images = "core-hours" if tables.on_cpu(record) else "device-hours", config.images * config.epochs
    rates = {name: tables.rate(numbers) for name, numbers in steps.items()}
    return _Estimate(
        f"{config.images:,} images x {config.epochs:g} epochs, by {_name(record)}",
        [Cost(name, rate, num_images / rate / 3600, unit, _name(record)) for name, rate in rates.items()],
        f"{tables.where(record)}; the training step alone, without waiting for data.",
        tables.clock(record),
    )


def _name(record: dict[str, Any]) -> str:
    return f"{record['name']}-{record['date']}"


def read(path: Path) -> dict[str, Any]:
    """Read a record of training steps.

    Raises:
        RequestError: the file is something else or unreadable.
    """
    try:
        record = files.read_json(path)
        known = "step" in record["name"] and bool(scaling.cases(record))
    except OSError as error:
        raise RequestError(f"record is {path}: {error.strerror}; expected a record of fastmim bench") from None
    except (RunError, KeyError, TypeError, AttributeError):  # no JSON, or other JSON
        known = False
    if not known:
        raise RequestError(f"record is {path}; expected a bench-step record of fastmim bench")
    return record
