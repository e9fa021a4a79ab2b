"""The application, the parameters and the exit status that its commands share, and `run`.

A command calls the function of the same name in `fastmim`, which imports torch only then. Flags and help come from the
dataclasses of settings.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import UnusedCliTokensError

from fastmim import config as configs
from fastmim.errors import DONE, FAILED, REFUSED, STOPPED, ElsewhereError, RequestError, RunError, first_line
from fastmim.system import processes
from fastmim.system.output import Enduring, discard, speaks
from fastmim.system.signals import raise_again
from fastmim.system.text import printable


def _default(value: Any) -> str | None:
    """A default as the help shows it; nothing for an empty one, which the text explains."""
    return None if value in (None, "", {}) else str(value)


app = App(
    name="fastmim",
    help="Pre-train any vision backbone on your own images: masked image modeling, made fast.",
    default_parameter=Parameter(
        negative_iterable=(),
        allow_repeating=True,  # the last one counts, so that scripts can add to a command
        show_default=_default,
    ),
)

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE)

AsFlags = Parameter(name="*")
"""Marks a dataclass of settings whose fields become flags of the command."""

Switch = Annotated[bool, Parameter(negative="")]
ConfigFile = Annotated[Path | None, Parameter(help="YAML file of settings; flags override it.")]
Overwrite = Annotated[
    bool, Parameter(negative="", help="Delete what an earlier call wrote to --out, finished or not, and start over.")
]
DryRun = Annotated[bool, Parameter(negative="", help="Check the settings, print what would be done, and stop.")]


def given(settings: configs.Settings | None, file: Path | None) -> dict[str, Any]:
    """Return the settings given by file and by flag, without defaults."""
    return (configs.read(file) if file else {}) | (settings.given if settings else {})


def status(result: Any, progress: str, *, overwrite: bool = False) -> int:
    """Return the exit status of a command that a signal may have stopped, and tell on standard error if it did.

    Args:
        result: Has `finished`.
        progress: How far a stopped command came, as a format of the result's fields.
    """
    if result.finished:
        return DONE
    command = "the same command without --overwrite" if overwrite else "the same command"
    nothing = vars(result).get("step") == 0
    done = "with nothing to save yet" if nothing else f"and saved {progress.format_map(vars(result))}"
    if speaks():
        print(f"stopped {done}; run {command} to resume", file=sys.stderr)
    return STOPPED


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """The options of a command that writes to --out and can be stopped and resumed."""

    config: ConfigFile = None
    overwrite: Overwrite = False
    dry_run: DryRun = False

    def call(
        self,
        function: Callable[..., Any],
        settings: configs.Settings | None,
        progress: str,
        *,
        on_devices: bool = False,
    ) -> int:
        """Call the function that does the work, and return the exit status; see `status`.

        Args:
            function: Of the package, with the command's name.
            settings: Those given by flag.
            progress: For `status`.
            on_devices: The work has a setting `devices`, and is shared by a process for each of them.
        """
        found = given(settings, self.config)
        if on_devices and (count := _num_processes(found)) > 1:
            return processes.run_on_devices(_words, count)
        with redirect_stdout(Enduring(sys.stdout)):  # the work outlives its terminal
            result = function(overwrite=self.overwrite, dry_run=self.dry_run, **found)
            sys.stdout.flush()
        return DONE if self.dry_run else status(result, progress, overwrite=self.overwrite)


def _num_processes(settings: Mapping[str, Any]) -> int:
    """How many processes to start for a command with these settings; 1 in a process that was started so."""
    processes.find_place()  # sets WORLD_SIZE in a step of Slurm
    if "WORLD_SIZE" in os.environ:
        return 1
    wanted, device = settings.get("devices"), str(settings.get("device", "auto"))
    if wanted in (None, "all"):
        return processes.num_gpus() if device in ("auto", "cuda") else 1
    if type(wanted) is not int:  # from a file; refused with the other settings
        return 1
    if device != "cpu" and (gpus := processes.num_gpus()) < wanted:
        raise RequestError(
            f"devices is {wanted}; expected at most the {gpus} of this machine (on a CPU, say --device cpu)"
        )
    return wanted


Options = Annotated[Resumable, AsFlags]
OPTIONS = Resumable()


_words: list[str] = []
"""The words of the command that runs now, for further processes of it."""


_REMARKS = (r"\s*Online softmax is disabled on the fly", "TensorFloat32 tensor cores for float32")
"""Beginnings of what torch.compile says of its own work, on which the user of a command cannot act."""


def run(arguments: list[str] | None) -> int:
    """Run a command and return its exit status."""
    _words[:] = sys.argv[1:] if arguments is None else arguments
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        for remark in _REMARKS:
            warnings.filterwarnings("ignore", remark)
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    try:
        ended: int = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        if sys.stdout and not sys.stdout.closed:
            sys.stdout.flush()  # a short output fails here, not as Python ends
        return ended
    except BrokenPipeError:  # `fastmim backbones | head`
        discard(sys.stdout)
        return DONE
    except Exception as error:
        raise_again()
        if os.environ.get("FASTMIM_DEBUG") == "1":
            traceback.print_exc()
        return _complain(error)


def _complain(error: Exception) -> int:
    """Tell of an error in one line, and return the exit status."""
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(error.unused_tokens or ())
        _print_line(f"{words!r} is not expected here; options begin with --, as in --data photos/: see --help")
        return REFUSED
    if isinstance(error, CycloptsError | RequestError):
        _print_line(str(error))
        return REFUSED
    if isinstance(error, ElsewhereError):
        return FAILED
    if isinstance(error, RunError):
        _print_line(str(error))
    elif isinstance(error, OSError) and error.errno in _DISK:
        _print_line(f"{error}; checkpoints are intact: free space or mend the disk, and run the same command to resume")
    elif isinstance(error, OSError) and error.filename is not None:
        _print_line(f"{error}; checkpoints are intact: mend or move that path, and run the same command to resume")
    else:
        said = f"{type(error).__name__}: {first_line(error)[:500]}" if str(error) else type(error).__name__
        _print_line(f"{said}; set FASTMIM_DEBUG=1 to see where it happened")
    return FAILED


def _warn(message: Warning | str, *where: Any) -> None:
    """Python's own way would also show the source line that warns."""
    _print_line(f"warning: {message}")


def _print_line(message: str) -> None:
    print(f"fastmim: {printable(' '.join(message.split()))}", file=sys.stderr)
