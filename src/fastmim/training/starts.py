"""What starts.jsonl says of each start of a run: when, at which step, on which machine, with which plan."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from fastmim import config as configs
from fastmim.system.machine import hardware
from fastmim.system.run_directory import versions
from fastmim.training.plan import Plan
from fastmim.training.settings import TrainConfig


def describe_start(config: TrainConfig, plan: Plan, *, step: int) -> dict[str, Any]:
    """The facts of a start as JSON types.

    Args:
        config: The run's settings.
        plan: The same, resolved to steps.
        step: Where training begins.

    Returns:
        "time" (UTC), "step", "command", "total_steps", "steps_per_epoch", "batch_size", "num_images", "stages",
        "processes", "hardware", "versions", and the "defaults" of the settings that the run changed.
    """
    settings, defaults = (configs.to_mapping(some) for some in (config, type(config)()))
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "step": step,
        "command": type(config).__name__.removesuffix("Config").lower(),  # `pretrain` for PretrainConfig
        "total_steps": plan.total_steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "batch_size": plan.batch_size,
        "num_images": plan.num_images,
        "stages": [dataclasses.asdict(stage) for stage in plan.stages],
        "precision": "bf16" if plan.bf16 else "float32",
        "compiled": plan.compile,
        "processes": plan.world.size,
        "hardware": hardware(str(plan.device)),
        "versions": versions(),
        "defaults": {name: value for name, value in defaults.items() if value != settings[name]},
    }
