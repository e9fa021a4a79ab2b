"""The step time of several devices, predicted from one device's measured steps and the links between devices.

A model on paper: what is measured is said by the record that the steps come from; overlap and bandwidths are assumed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fastmim.bench.cases import METHODS, Case
from fastmim.bench.tables import rate

_BUCKET_BYTES = 25 * 2**20  # the size of DistributedDataParallel's buckets
_BACKWARD = 2 / 3  # the backward pass's share of the arithmetic of a step


@dataclass(frozen=True)
class Step:
    """A training step on one device.

    Args:
        fixed: Seconds that a step takes whatever its batch: launches, optimiser.
        per_image: Seconds for each further image.
        gradient_bytes: Bytes of the gradients that devices average, 4 a parameter.
    """

    fixed: float
    per_image: float
    gradient_bytes: int


@dataclass(frozen=True)
class Cluster:
    """Devices in nodes, and what connects them.

    Args:
        devices: All devices.
        per_node: Devices of a node.
        inside: GB/s that each device sends to another one of its node while all do.
        between: GB/s that a node sends to other nodes, all its network cards together.
        latency: Seconds of one hop.
        loader: Images/s that a node reads and decodes; None for more than its devices take.
    """

    devices: int
    per_node: int = 8
    inside: float = 300.0
    between: float = 50.0
    latency: float = 2e-5
    loader: float | None = None

    @property
    def bandwidth(self) -> float:
        """Bytes/s of the slowest link of a ring through all devices, which leaves each node once."""
        return 1e9 * (self.inside if self.devices <= self.per_node else min(self.inside, self.between))


@dataclass(frozen=True)
class Prediction:
    """A step of a cluster, in seconds.

    `fixed` and `arithmetic` are those of one device; `exchange` is the part of the gradients' exchange that the
    backward pass does not hide; `data` the time in which a node can read the step's images, during the rest.
    """

    batch_size: int
    fixed: float
    arithmetic: float
    exchange: float
    data: float

    @property
    def seconds(self) -> float:
        """The step's time."""
        return max(self.fixed + self.arithmetic + self.exchange, self.data)

    @property
    def images_per_s(self) -> float:
        """Images per second of all devices."""
        return self.batch_size / self.seconds

    @property
    def bound(self) -> str:
        """What takes most of the time."""
        if self.data >= self.seconds:
            return "data"
        parts = {"arithmetic": self.arithmetic, "fixed costs": self.fixed, "gradients": self.exchange}
        return max(parts, key=lambda name: parts[name])


def fit(rates: Mapping[int, float], gradient_bytes: int) -> Step:
    """A step's fixed and variable time from measurements at several batch sizes, by least squares.

    Args:
        rates: {images of a step: images per second}. With one batch size there is no fixed time.
        gradient_bytes: Bytes of the gradients.
    """
    sizes = np.array(sorted(rates), dtype=float)
    seconds = sizes / [rates[int(size)] for size in sizes]
    if len(sizes) == 1:
        return Step(0.0, float(seconds[0] / sizes[0]), gradient_bytes)
    # Relative errors count, so that a small batch weighs as much as a large one.
    columns = np.stack([np.ones_like(sizes), sizes], axis=1) / seconds[:, None]
    fixed, per_image = np.linalg.lstsq(columns, np.ones_like(sizes), rcond=None)[0]
    if fixed < 0:  # noise: a line through the origin
        return Step(0.0, float(1 / np.sum(columns[:, 1]) * len(sizes)), gradient_bytes)
    return Step(float(fixed), float(per_image), gradient_bytes)


def predict(step: Step, cluster: Cluster, batch_size: int) -> Prediction:
    """The time of a step whose batch is divided evenly among the devices.

    Gradients are averaged by a ring, which sends 2 (N - 1) / N of them over the slowest link, bucket by bucket while
    the backward pass goes on. The last bucket is ready only when that pass has ended.

    Args:
        step: On one device.
        cluster: The devices.
        batch_size: Images of a step, over all devices.
    """
    images = batch_size / cluster.devices
    arithmetic = step.per_image * images
    exchange = 0.0
    if cluster.devices > 1:
        buckets = max(1, math.ceil(step.gradient_bytes / _BUCKET_BYTES))
        sent = 2 * (cluster.devices - 1) / cluster.devices * step.gradient_bytes / cluster.bandwidth
        whole = sent + buckets * 2 * math.log2(cluster.devices) * cluster.latency
        exchange = max(whole / buckets, whole - _BACKWARD * arithmetic)
    per_node = min(cluster.devices, cluster.per_node)
    data = images * per_node / cluster.loader if cluster.loader else 0.0
    return Prediction(batch_size, step.fixed, arithmetic, exchange, data)


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of a model's gradients in float32."""
    return sum(4 * parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def cases(record: Mapping[str, Any]) -> dict[str, Any]:
    """The cases of a record of training steps, {name: forms}; empty for other records."""
    summary = record["summary"].get("cases", record["summary"])
    return summary if all(isinstance(case, dict) and "forms" in case for case in summary.values()) else {}


def steps(record: Mapping[str, Any]) -> dict[str, Step]:
    """The steps of a record of `fastmim bench --only step`, or of benchmarks/gpu.py: one for each network and masking.

    Args:
        record: Its cases are named by the network and its method, or words such as "128 px" and "drop", and perhaps
            "batch 256", with commas.
    """
    rates: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for case, found in cases(record).items():
        name, _, batch = case.partition(", batch ")
        rates[name][int(batch or record["config"]["batch_size"])] = rate(found["forms"][found["fastmim"]])
    return {name: fit(found, _bytes_of(name)) for name, found in rates.items()}


def _bytes_of(case: str) -> int:
    backbone, *words = case.split(", ")
    img_size = next((int(word.removesuffix(" px")) for word in words if word.endswith(" px")), 128)
    masking: Literal["drop", "in-place"] = "drop" if "drop" in words else "in-place"
    method = next((word for word in words if word in METHODS), None)
    named = Case.of(method, backbone) if method else Case(backbone=backbone, img_size=img_size, masking=masking)
    with torch.device("meta"):
        return gradient_bytes(named.build())
