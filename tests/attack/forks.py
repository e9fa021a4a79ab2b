"""Commands and cases in forks of a process that has imported torch: a start takes milliseconds, not seconds."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from attack.outcome import Ended, Outcome

_MAX_TEXT = 1 << 20


def warm() -> None:
    """Import what commands import, so that forks need not."""
    import fastmim
    import fastmim.cli.commands
    import fastmim.data.packs.packing
    import fastmim.method.visualise
    import fastmim.pretraining
    import fastmim.transfer.classify.finetune
    import fastmim.transfer.features.embed
    import fastmim.transfer.features.probe
    import fastmim.weights.convert
    import fastmim.weights.export  # noqa: F401


def start(arguments: list[str], log: Path, before: Callable[[], object] = lambda: None) -> int:
    """Start `fastmim ARGUMENTS` in a fork and a process group of its own; return the process id.

    Args:
        log: Its standard output and error go to `log`.out and `log`.err.
        before: Called in the fork before the command.
    """
    _flush()
    for end in ("out", "err"):  # for a fork that is killed before it opens its own
        Path(f"{log}.{end}").touch()
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        redirect(log)
        before()
        status = _command(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _command(arguments: list[str]) -> int:
    from fastmim import cli

    sys.argv[1:] = arguments
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        atexit._run_exitfuncs()
    return 1


def redirect(log: Path) -> None:
    """From now on, this process reads nothing and writes to `log`.out and `log`.err."""
    sources = [os.open(os.devnull, os.O_RDONLY)]
    sources += [os.open(f"{log}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for end in ("out", "err")]
    for number, source in enumerate(sources):
        os.dup2(source, number)
        os.close(source)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def wait(pid: int, log: Path, *, seconds: float, began: float | None = None) -> Ended:
    """Wait for a process that `start` started; kill its group if it takes longer than `seconds`."""
    began = time.monotonic() if began is None else began
    hung = False
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        if not hung and time.monotonic() > began + seconds:
            hung = True
            kill_group(pid)
        time.sleep(0.002)
    kill_group(pid)  # workers that it left behind
    out, err = (Path(f"{log}.{end}").read_bytes()[:_MAX_TEXT].decode(errors="replace") for end in ("out", "err"))
    return Ended(
        os.waitstatus_to_exitcode(status), out, err, time.monotonic() - began, usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024, hung,
    )  # fmt: skip


def run(arguments: list[str], log: Path, *, seconds: float = 60, before: Callable[[], object] = lambda: None) -> Ended:
    """Run `fastmim ARGUMENTS` in a fork to its end; see `start`."""
    began = time.monotonic()
    return wait(start(arguments, log, before), log, seconds=seconds, began=began)


def kill_group(pid: int) -> None:
    """Send SIGKILL to a process group, if any of it is left."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def aside(function: Callable[[], object]) -> None:
    """Call a function in a fork, so that the memory it takes is not this process's; wait for it."""
    _flush()
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    try:
        function()
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(0)


def group_members(pid: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def spread(
    function: Callable[[int], Outcome], numbers: Iterable[int], *, jobs: int, seconds: float, folder: Path
) -> Iterator[tuple[int, Outcome]]:
    """Call a function for each number, `jobs` at a time, each in a fork; yield (number, outcome) as they end."""
    waiting, running = iter(numbers), dict[int, tuple[int, float]]()
    while True:
        while len(running) < jobs and (number := next(waiting, None)) is not None:
            running[_fork_case(function, number, folder / f"{number}.json")] = (number, time.monotonic())
        if not running:
            return
        for pid, (number, began) in list(running.items()):
            if time.monotonic() > began + seconds:
                kill_group(pid)
            if os.waitpid(pid, os.WNOHANG)[0]:
                kill_group(pid)
                del running[pid]
                yield number, _read(folder / f"{number}.json", time.monotonic() - began)
        time.sleep(0.005)


def _fork_case(function: Callable[[int], Outcome], number: int, report: Path) -> int:
    report.unlink(missing_ok=True)
    _flush()
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        try:
            outcome = function(number)
        except Exception:  # a fault of the suite, which must not pass for a kept promise
            told = " | ".join(line.strip() for line in traceback.format_exc().splitlines()[-5:])
            outcome = Outcome(faults=[f"the attack itself failed: {told}"])
        report.write_text(json.dumps(vars(outcome)))
    finally:
        os._exit(0)


def _read(report: Path, seconds: float) -> Outcome:
    if report.exists():
        return Outcome(**json.loads(report.read_text()))
    return Outcome(faults=[f"crash or hang: the process of the case was gone after {seconds:.0f} s"])
