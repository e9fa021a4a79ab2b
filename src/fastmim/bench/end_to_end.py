"""Whole runs of `fastmim.pretrain` from the disk, against the same loop on a batch in memory."""

from __future__ import annotations

import contextlib
import io
import statistics
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from fastmim.bench.steps import synthetic_batch
from fastmim.bench.timing import spread
from fastmim.data.sources import Source
from fastmim.pretraining import Pretraining
from fastmim.system.run_directory import RunDirectory
from fastmim.training.loop import Batch
from fastmim.training.run import launch
from fastmim.training.schedule import Stage

MEMORY = "batches in memory"
SMALL: dict[str, Any] = {"patch_size": 32, "embed_dim": 96, "depth": 2, "num_heads": 3}
"""Arguments of a ViT that is small enough for reading to limit a CPU core."""


def measure(
    tiers: dict[str, Source],
    into: Path,
    *,
    device: str,
    backbone: str,
    backbone_args: dict[str, Any] | None,
    batch_size: int,
    steps: int,
    rounds: int,
    bf16: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train for some steps from every tier in turns; the first half of each run is a warm-up that does not count.

    Args:
        tiers: From `corpus.make_tiers`.
        into: An empty directory for the runs.
        device: Where to train.
        backbone: A timm model.
        backbone_args: Its arguments.
        batch_size: Images in a step.
        steps: Steps of a run, an even number.
        rounds: Runs of each tier.
        bf16: Train in bfloat16.

    Returns:
        The summary by tier; the images per second and the share of time waiting for data of each round.
    """
    settings: dict[str, Any] = {
        "backbone": backbone,
        "backbone_args": backbone_args or {},
        "batch_size": batch_size,
        "steps": steps,
        "log_every": steps // 2,
        "precision": "bf16" if bf16 else "float32",
        "device": device,
        "trackers": "none",
        "picture_every": "never",
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*tiers, MEMORY)}
    kinds: dict[str, tuple[type[Pretraining], str]] = {n: (Pretraining, s.origin) for n, s in tiers.items()}
    kinds[MEMORY] = (_FromMemory, next(iter(tiers.values())).origin)
    for number in range(rounds):
        for name, (kind, origin) in kinds.items():
            torch.compiler.reset()  # torch.compile gives up after a number of recompilations
            out = into / f"{name.replace(' ', '-')}-{number}"
            with contextlib.redirect_stdout(io.StringIO()):
                launch(kind, settings | {"data": origin, "out": out})
            found[name].append(RunDirectory(out).read_metrics()[-1])
    raw = {
        key: {name: [line[key] for line in lines] for name, lines in found.items()}
        for key in ("images_per_s", "data_wait_share")
    }
    return {name: _summarise(raw, name) for name in found}, raw


def _summarise(raw: dict[str, dict[str, list[float]]], name: str) -> dict[str, Any]:
    share = [a / b for a, b in zip(raw["images_per_s"][name], raw["images_per_s"][MEMORY], strict=True)]
    return {
        "images_per_s": statistics.median(raw["images_per_s"][name]),
        "data_wait_share": statistics.median(raw["data_wait_share"][name]),
        "of_memory": spread(share),
    }


class _FromMemory(Pretraining):
    """A run on one batch that stays on the device."""

    def batches(self, stage: Stage, first_step: int) -> Generator[Batch]:
        batch = synthetic_batch(self.plan.batch_size, stage.size, str(self.plan.device))
        while True:
            yield batch
