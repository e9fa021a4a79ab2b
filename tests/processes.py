"""Runs of several processes on this machine, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conftest import command_line
from fastmim import cli


def start(command: str, data: Path | str, out: Path, settings: dict[str, Any], *flags: str) -> subprocess.Popen[str]:
    words = [*command_line(command, Path(data), out, settings), *flags]
    return subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def together(command: str, data: Path, out: Path, *settings: dict[str, Any]) -> tuple[list[int], str]:
    """Run a command in a forked process for each of the settings; their exit statuses, and what they said.

    Forked processes have torch already.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(len(settings)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    log = out.with_suffix(".log")
    children = []
    for rank, own in enumerate(settings):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 99
        try:
            os.environ.update(shared, RANK=str(rank))
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
            cli.main(command_line(command, data, out, own)[3:])
        except SystemExit as ended:
            status = int(ended.code or 0)
        finally:
            os._exit(status)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return statuses, log.read_text()


def wait_for(path: Path, num_lines: int) -> None:
    end = time.monotonic() + 300
    while not path.exists() or len(path.read_text().splitlines()) < num_lines:
        assert time.monotonic() < end
        time.sleep(0.05)
