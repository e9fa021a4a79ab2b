"""The commands `study`, `bench` and `cost`."""

from __future__ import annotations

from typing import Annotated

import fastmim
from fastmim.bench.settings import BenchConfig, CostConfig
from fastmim.cli.app import AsFlags, ConfigFile, DryRun, app, given, status
from fastmim.errors import DONE
from fastmim.studies.settings import StudyConfig


@app.command
def study(
    settings: Annotated[StudyConfig, AsFlags] | None = None, *, config: ConfigFile = None, dry_run: DryRun = False
) -> int:
    """Compare pre-training settings on your data, within a budget. The same command again resumes.

    Every combination of the swept settings is pre-trained, fine-tuned on few and on many labels, and probed, with
    several seeds; the same network is also trained from scratch. All are fine-tuned alike: a fine-tuning setting that
    favours one of them makes the comparison unfair. Written are a table, a plot of accuracy against cost, and a record.
    """
    result = fastmim.study(dry_run=dry_run, **given(settings, config))
    return DONE if dry_run else status(result, "after {num_done} of {num_trials} trials")


@app.command
def bench(settings: Annotated[BenchConfig, AsFlags] | None = None) -> int:
    """Measure data path, HOG, training steps, fine-tuning and whole runs; writes records, tables and a chart."""
    from fastmim.bench.bench import bench as run_bench

    run_bench(settings or BenchConfig())
    return DONE


@app.command
def cost(settings: Annotated[CostConfig, AsFlags]) -> int:
    """Estimate the device-hours of a training, from measurements of `fastmim bench` or by trying a step."""
    from fastmim.bench.cost import print_cost

    print_cost(settings)
    return DONE
