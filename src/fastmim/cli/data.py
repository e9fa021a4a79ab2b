"""`pack`."""

from __future__ import annotations

from typing import Annotated, Any

import fastmim
from fastmim.cli.app import AsFlags, ConfigFile, DryRun, Overwrite, Switch, app, given, status
from fastmim.data.packs.settings import PackConfig
from fastmim.errors import DONE, RequestError


@app.command
def pack(
    settings: Annotated[PackConfig, AsFlags] | None = None,
    *,
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    verify: Switch = False,
) -> int:
    """Shrink images once, so that they load several times faster. The same command again resumes.

    Parameters
    ----------
    verify
        Compare a pack with its checksums instead: fastmim pack --verify packed/
    """
    wanted = given(settings, config)
    if verify:
        return _verify(wanted)
    result = fastmim.pack(overwrite=overwrite, dry_run=dry_run, **wanted)
    progress = f"after {result.num_read} of {result.num_source} images"
    return status(result, progress, overwrite=overwrite, dry_run=dry_run)


def _verify(wanted: dict[str, Any]) -> int:
    if wanted.keys() != {"data"}:
        raise RequestError(f"out is {wanted.get('out', 'not given')}; expected one directory with --verify")
    from fastmim.data.packs import packing

    print(f"{wanted['data']}: all {packing.verify(wanted['data']):,} images match their checksums")
    return DONE
