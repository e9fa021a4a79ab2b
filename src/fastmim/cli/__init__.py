"""The `fastmim` command: one module for each group of commands, all added to `app` when `main` imports them."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stderr
from typing import NoReturn

from fastmim.errors import STOPPED
from fastmim.system.output import Enduring, escape_unknown, speaks
from fastmim.system.signals import Stopped, StopSignals

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its status: 0 done, 1 failed, 2 the request is wrong, 75 stopped after saving."""
    escape_unknown(sys.stdout)
    if not os.environ.get("FASTMIM_DEBUG"):  # torch warns of a process that has gone by 40 lines of C++
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with redirect_stderr(Enduring(sys.stderr)):
        try:
            # From the first import until the process has ended.
            with StopSignals(whole_process=True, ends_process=arguments is None):
                from fastmim.cli import commands

                status = commands.run(arguments)
        except Stopped as stopped:
            if speaks():
                print(f"fastmim: {stopped}", file=sys.stderr)
            status = STOPPED
    sys.exit(status)
