"""The `pack` command."""

from __future__ import annotations

from typing import Annotated, Any

import fastmim
from fastmim.cli.app import OPTIONS, AsFlags, Options, Switch, app, given
from fastmim.data.packs.settings import PackConfig
from fastmim.errors import DONE, RequestError
from fastmim.system.text import printable


@app.command
def pack(
    settings: Annotated[PackConfig, AsFlags] | None = None, *, options: Options = OPTIONS, verify: Switch = False
) -> int:
    """Shrink images once, so that they load several times faster. The same command again resumes.

    Parameters
    ----------
    verify
        Compare a pack with its checksums instead: fastmim pack --verify packed/
    """
    if verify:
        return _verify(given(settings, options.config))
    return options.call(fastmim.pack, settings, "after {num_read} of {num_source} images")


def _verify(wanted: dict[str, Any]) -> int:
    if wanted.keys() != {"data"}:
        raise RequestError(f"out is {wanted.get('out', 'not given')}; expected one directory with --verify")
    from fastmim.data.packs import packing

    num_images = packing.verify(wanted["data"])
    print(printable(f"{wanted['data']}: all {num_images:,} images match their checksums"))
    return DONE
