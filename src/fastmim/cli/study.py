"""`fastmim study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastmim.cli import arguments
from fastmim.errors import DONE
from fastmim.studies.settings import StudyConfig


def study(
    settings: Annotated[StudyConfig, Parameter(name="*")] | None = None,
    *,
    config: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Compare pre-training settings on your data, within a budget. The same command again resumes.

    Every combination of the swept settings is pre-trained, fine-tuned on few and many labels and probed with several
    seeds, and so is the same network from scratch. All are fine-tuned alike; a setting that is tuned for one of them
    only is not a fair comparison. What comes out: a table, a plot of accuracy against cost, and a record.

    Parameters
    ----------
    config
        YAML file of settings; flags override it. A study's own config.yaml will do.
    dry_run
        Check everything, print what would be run, and stop.
    """
    given = arguments.asked_for(settings, config)
    from fastmim.studies.study import study as run_study

    result = run_study(dry_run=dry_run, **given)
    if dry_run or result.finished:
        return DONE
    return arguments.stopped(f"after {result.num_done} of {result.num_trials} trials")
