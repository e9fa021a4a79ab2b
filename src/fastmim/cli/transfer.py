"""`finetune`, `probe` and `embed`."""

from __future__ import annotations

from typing import Annotated

import fastmim
from fastmim.cli.app import AsFlags, ConfigFile, DryRun, Overwrite, app, given, status
from fastmim.errors import DONE
from fastmim.transfer.classify.settings import FinetuneConfig
from fastmim.transfer.features.settings import EmbedConfig, ProbeConfig


@app.command
def finetune(
    settings: Annotated[FinetuneConfig, AsFlags] | None = None,
    *,
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> int:
    """Train a classifier end to end from pre-trained weights, or from scratch. The same command again resumes."""
    result = fastmim.finetune(overwrite=overwrite, dry_run=dry_run, **given(settings, config))
    return status(result, f"at step {result.step} of {result.total_steps}", overwrite=overwrite, dry_run=dry_run)


@app.command
def probe(
    settings: Annotated[ProbeConfig, AsFlags] | None = None, *, config: ConfigFile = None, dry_run: DryRun = False
) -> int:
    """Measure frozen features on labelled images, by kNN or a linear probe."""
    fastmim.probe(dry_run=dry_run, **given(settings, config))
    return DONE


@app.command
def embed(
    settings: Annotated[EmbedConfig, AsFlags] | None = None,
    *,
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> int:
    """Write the features of any number of images to a file. The same command again resumes."""
    result = fastmim.embed(overwrite=overwrite, dry_run=dry_run, **given(settings, config))
    progress = f"after {result.num_read} of {result.num_images} images"
    return status(result, progress, overwrite=overwrite, dry_run=dry_run)
