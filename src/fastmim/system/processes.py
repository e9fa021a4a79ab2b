"""The processes of a run: where this one stands among them, and starting one for each device of this machine."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.errors import DONE, FAILED, STOPPED, RequestError
from fastmim.system.signals import StopSignals

NO_MAIN_GUARD = 78
"""Exit status of a worker process whose program starts the work again; see `check_main_guard`."""
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 30.0
"""How long the others of a process that failed have to notice, and those that were told to stop to save."""
NEW_SESSION: Mapping[str, Any] = {"start_new_session": True}
if sys.platform == "win32":
    NEW_SESSION = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
"""Arguments of Popen for a process that a terminal's Ctrl-C does not reach: the one that started it passes it on."""
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number among the processes of this machine."""
    local_size: int = 1


def find_place() -> Place:
    """Read the environment that torchrun, `run_on_devices` or srun has set; torch finds the others by it.

    Raises:
        RequestError: the variables are incomplete or contradict each other.
    """
    _translate_slurm()
    values = {name: os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if values["WORLD_SIZE"] is None or values["WORLD_SIZE"] == "1":
        return Place()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise RequestError(
            f"WORLD_SIZE is {values['WORLD_SIZE']} without {', '.join(missing)}; expected the variables of torchrun: "
            f"start with torchrun, srun or --devices, or unset WORLD_SIZE"
        )
    try:
        size, rank = int(values["WORLD_SIZE"]), int(values["RANK"] or 0)
        place = Place(rank, size, int(values["LOCAL_RANK"] or 0), int(values["LOCAL_WORLD_SIZE"] or 1))
    except ValueError:
        raise RequestError(f"the environment has {values}; expected whole numbers, as torchrun sets them") from None
    if not 0 <= place.rank < place.size:
        raise RequestError(f"RANK is {place.rank}; expected 0 to {place.size - 1}, since WORLD_SIZE is {place.size}")
    return place


def _translate_slurm() -> None:
    """Set torchrun's variables in a step that srun has started."""
    found = os.environ
    if "WORLD_SIZE" in found or int(found.get("SLURM_STEP_NUM_TASKS") or 1) < 2:
        return
    for name, theirs in _SLURM.items():
        found[name] = found[theirs]
    found["LOCAL_WORLD_SIZE"] = re.split(r"\D", found.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0]
    found.setdefault("MASTER_ADDR", first_host(found["SLURM_STEP_NODELIST"]))
    found.setdefault("MASTER_PORT", str(20000 + int(found["SLURM_JOB_ID"]) % 20000))


def first_host(hosts: str) -> str:
    """The first of a list of hosts as Slurm writes it, such as `gpu[003-006,9],login1`."""
    prefix, bracket, rest = hosts.split(",")[0].partition("[")
    return prefix + re.split(r"[-,\]]", rest)[0] if bracket else prefix


def check_main_guard() -> None:
    """End this process if it is a worker that has just imported the user's script, which starts the work again.

    Workers import it wherever they are not forks: on macOS and Windows, and on Linux from Python 3.14 on. The process
    that started the worker then says what the script lacks.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds out
        sys.exit(NO_MAIN_GUARD)


def num_gpus() -> int:
    """How many GPUs (NVIDIA, AMD) this process may use, at least 1; imports torch only if the machine has several."""
    if len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) < 2 and len(list(Path("/dev/dri").glob("renderD*"))) < 2:
        return 1  # or none
    import torch

    return max(1, torch.cuda.device_count())


def run_on_devices(words: Sequence[str], count: int) -> int:
    """Run a fastmim command in `count` processes of this machine, each on a device of its own, until all have ended.

    torchrun's own agent would kill a process that is still saving after 30 seconds, and hide the exit status 75.

    Args:
        words: The command's words, without `fastmim`.
        count: Number of processes.

    Returns:
        The exit status: that of the first process that failed, or 75 if the run was stopped and saved.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": _threads(count)}
    with StopSignals() as stop:
        children = [_start(words, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]
        try:
            return _wait(children, stop)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()


def ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process that was started with `NEW_SESSION` to save and stop (`system.signals`)."""
    if sys.platform == "win32":  # where `terminate` would end it at once
        process.send_signal(signal.CTRL_BREAK_EVENT)
    else:
        process.terminate()


def _threads(count: int) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))


def _start(words: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fastmim", *words],
        env={**os.environ, **env, "FASTMIM_PARENT": str(os.getpid())},
        **NEW_SESSION,
    )


def _wait(children: Sequence[subprocess.Popen[bytes]], stop: StopSignals) -> int:
    failed: dict[int, int] = {}  # rank -> status, in the order they were seen; without those that are killed here
    told, since = False, 0.0
    while running := [child for child in children if child.poll() is None]:
        if stop.requested and not told:
            told = True
            for child in running:
                ask_to_stop(child)
        if not failed:
            since = time.monotonic()
        failed |= _failures(children)
        if failed and time.monotonic() > since + _GRACE_SECONDS:  # they wait for the one that failed
            break
        time.sleep(_POLL_SECONDS)
    failed |= _failures(children)
    for child in running:
        child.kill()
    if not failed:
        return STOPPED if STOPPED in [child.returncode for child in children] else DONE
    # Those who lose a process fail too, perhaps before it is seen to have ended.
    rank = next((rank for rank, status in failed.items() if status < 0), None)
    if rank is None:
        return next(iter(failed.values()))
    name = signal.Signals(-failed[rank]).name
    print(
        f"fastmim: process {rank} of {len(children)} was ended by {name}; run the same command to resume",
        file=sys.stderr,
    )
    return FAILED


def _failures(children: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    return {
        rank: child.returncode for rank, child in enumerate(children) if child.returncode not in (None, DONE, STOPPED)
    }
