"""Commands in processes of their own, alone or several that train together, for tests."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import pytest
import torch

from conftest import command_line, usual_signals
from fastmim import cli
from fastmim.system.signals import StopSignals


class Forked:
    """A fork of this process that calls `main`, with the methods of `subprocess.Popen`.

    It starts in milliseconds, for it has torch already, and is signalled, killed and waited for like any other.

    Args:
        main: Ends by SystemExit, as commands do.
        log: What it writes is appended to this file.
        errors: Where its standard error goes instead.
        env: Variables of its environment.
    """

    def __init__(self, main: Callable[[], object], log: Path, *, errors: Path | None = None, **env: str) -> None:
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self._log, self._errors = log, errors or log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _become(main, self._log, self._errors, env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        wait_until(lambda: self.poll() is not None, seconds=timeout)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end; what it said and its errors, which are the same if they have no file of their own."""
        self.wait(timeout)
        return self._log.read_text(), self._errors.read_text()

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *error: object) -> None:
        if self.poll() is None:
            self.kill()
            self.wait()


def _become(main: Callable[[], object], log: Path, errors: Path, env: dict[str, str]) -> NoReturn:
    """Be a process that has just started: usual signals, and what is random by chance is as in no other."""
    status = 99
    try:
        usual_signals()
        StopSignals._current = None
        os.environ.update(env)
        for number, path in ((1, log), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
        random.seed()
        np.random.seed()
        torch.seed()
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def fork(
    command: str,
    data: Path | str,
    out: Path,
    settings: dict[str, Any],
    *flags: str,
    errors: Path | None = None,
    **env: str,
) -> Forked:
    """A command in a fork, which writes all it says to OUT.log, or its errors to a file of their own."""
    words = [*command_line(command, Path(data), out, settings)[3:], *flags]
    return Forked(lambda: cli.main(words), out.with_suffix(".log"), errors=errors, **env)


def fork_devices(log: Path, patch: pytest.MonkeyPatch) -> None:
    """Let `--devices` fork its processes, too."""

    def start_one(words: Sequence[str], env: Mapping[str, str]) -> Forked:
        return Forked(lambda: cli.main([*words]), log, **env, FASTMIM_PARENT=str(os.getpid()))

    patch.setattr("fastmim.system.processes._start", start_one)


def together(command: str, data: Path, out: Path, *settings: dict[str, Any]) -> tuple[list[int], str]:
    """Run a command in a fork for each of the settings; their exit statuses, and what they said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(len(settings)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [fork(command, data, out, own, **shared, RANK=str(rank)) for rank, own in enumerate(settings)]
    return [process.wait() for process in processes], out.with_suffix(".log").read_text()


def wait_for(path: Path, num_lines: int) -> None:
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) >= num_lines, seconds=300)


def wait_until(happened: Callable[[], object], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)
