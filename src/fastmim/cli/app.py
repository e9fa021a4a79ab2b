"""The application, the parameters and the exit status that its commands share, and `main`.

A command calls the function of the same name in `fastmim`, which imports torch only then. Flags and help come from the
dataclasses of settings.
"""

from __future__ import annotations

import errno
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol

from cyclopts import App, CycloptsError, Parameter

from fastmim import config as configs
from fastmim.errors import DONE, FAILED, REFUSED, STOPPED, RequestError, RunError

app = App(
    name="fastmim",
    help="Pre-train any vision backbone on your own images: masked image modeling, made fast.",
    default_parameter=Parameter(negative_iterable=()),
)

AsFlags = Parameter(name="*")
"""Marks a dataclass of settings whose fields become flags of the command."""

Switch = Annotated[bool, Parameter(negative="")]
ConfigFile = Annotated[Path | None, Parameter(help="YAML file of settings; flags override it.")]
Overwrite = Annotated[
    bool, Parameter(negative="", help="Delete what an earlier call wrote to --out, finished or not, and start over.")
]
DryRun = Annotated[bool, Parameter(negative="", help="Check the settings, print what would be done, and stop.")]


class Resumable(Protocol):
    """The result of a command that can be stopped and resumed."""

    @property
    def finished(self) -> bool: ...


def given(settings: configs.Settings | None, file: Path | None) -> dict[str, Any]:
    """Return the settings given by file and by flag, without defaults."""
    return (configs.read(file) if file else {}) | (settings.given if settings else {})


def status(result: Resumable, progress: str, *, overwrite: bool, dry_run: bool) -> int:
    """Return the exit status of a resumable command, and tell on standard error if a signal stopped it.

    Args:
        progress: How far it came, such as `at step 3 of 12`.
    """
    if dry_run or result.finished:
        return DONE
    command = "the same command without --overwrite" if overwrite else "the same command"
    print(f"stopped and saved {progress}; run {command} to resume", file=sys.stderr)
    return STOPPED


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its status: 0 done, 1 failed, 2 the request is wrong, 75 stopped after saving."""
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        return app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, RequestError) as error:
        return _complain(str(error), REFUSED)
    except RunError as error:
        return _complain(str(error), FAILED)
    except BrokenPipeError:  # `fastmim backbones | head`
        sys.stderr.close()
        return DONE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _complain(f"{error}; checkpoints are intact: free space and run the same command to resume", FAILED)


def _complain(message: str, status: int) -> int:
    print(f"fastmim: {' '.join(message.split())}", file=sys.stderr)
    return status


def _warn(message: Warning | str, *where: Any) -> None:
    """Python's own way would also show the source line that warns."""
    print(f"fastmim: warning: {' '.join(str(message).split())}", file=sys.stderr)
