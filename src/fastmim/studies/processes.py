"""Worker processes: trials run side by side on the devices, and a signal stops them all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from fastmim.errors import DONE
from fastmim.studies.settings import StudyConfig
from fastmim.studies.trial import FILE, Trial
from fastmim.system import devices, files
from fastmim.system.processes import NEW_SESSION, ask_to_stop
from fastmim.system.signals import StopSignals

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Slots:
    """The devices of the trials that run at the same time, one entry for each trial."""

    devices: tuple[str, ...]
    threads: int | None
    """Threads of each trial on a CPU; None on accelerators."""
    num_workers: int
    """Data workers of each trial."""

    def describe(self) -> str:
        """The slots in words."""
        kinds = ", ".join(dict.fromkeys(self.devices))
        threads = f", {self.threads} thread{'s' if self.threads != 1 else ''} each" if self.threads else ""
        return f"{len(self.devices)} at a time on {kinds}{threads}"


def find_slots(config: StudyConfig) -> Slots:
    """Find the devices of a study; raises RequestError if one is missing."""
    cores = devices.num_cores()
    device = devices.resolve_device(config.device)
    if device.type == "cpu":
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or 1))
        parallel = config.parallel or max(1, cores // threads)
        return Slots(("cpu",) * parallel, threads, config.num_workers or 0)
    several = config.device in ("auto", device.type) and device.type != "mps"
    names = [f"{device.type}:{n}" for n in range(torch.accelerator.device_count())] if several else [str(device)]
    parallel = config.parallel or len(names)
    workers = max(1, min(16, cores // parallel - 1)) if config.num_workers is None else config.num_workers
    return Slots(tuple(names[n % len(names)] for n in range(parallel)), None, workers)


@dataclass
class Outcome:
    """The outcome of a set of trials."""

    stopped: bool = False
    """Whether a signal stopped them; the running trials have been saved."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds of each process that succeeded, by the trial's name."""
    failures: dict[str, str] = field(default_factory=dict)
    """The last line of output of each process that failed, by the trial's name."""


@dataclass
class _Process:
    trial: Trial
    slot: int
    popen: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float


def run_all(trials: Sequence[Trial], slots: Slots, *, lock: int, done: Callable[[Trial], None]) -> Outcome:
    """Run the trials that are not done yet in order, one on each slot at a time.

    Args:
        lock: File descriptor of `locking.hold`, which the processes inherit.
        done: Called after each trial that succeeded.
    """
    waiting = [t for t in trials if t.results() is None]
    running: list[_Process] = []
    free = list(range(len(slots.devices)))
    outcome = Outcome()
    with StopSignals() as stop:
        while running or (waiting and not stop.requested):
            while waiting and free and not stop.requested:
                running.append(_start(waiting.pop(0), free.pop(0), slots, lock))
            if stop.requested and not outcome.stopped:
                outcome.stopped = True
                for process in running:
                    ask_to_stop(process.popen)
            time.sleep(_POLL_SECONDS)
            for process in [p for p in running if p.popen.poll() is not None]:
                running.remove(process)
                free.append(process.slot)
                _finish(process, outcome, done)
        outcome.stopped |= stop.requested
    return outcome


def _start(trial: Trial, slot: int, slots: Slots, lock: int) -> _Process:
    trial.folder.mkdir(parents=True, exist_ok=True)
    files.write_json(trial.folder / FILE, trial.runs(slots.devices[slot]))
    threads = {} if slots.threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(slots.threads))
    log = (trial.folder / "log.txt").open("ab")
    popen = subprocess.Popen(
        [sys.executable, "-m", "fastmim.studies.trial_process", str(trial.folder / FILE)],
        stdin=subprocess.PIPE,  # closes when this process ends, for whatever reason
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | threads,
        **_inheriting(lock),
        **NEW_SESSION,
    )
    return _Process(trial, slot, popen, log, time.monotonic())


def _inheriting(lock: int) -> dict[str, Any]:
    """Arguments of Popen for a process that holds the study's lock too; on Windows it holds those of its runs only."""
    return {} if sys.platform == "win32" else {"pass_fds": (lock,)}


def _finish(process: _Process, outcome: Outcome, done: Callable[[Trial], None]) -> None:
    process.log.close()
    assert process.popen.stdin
    process.popen.stdin.close()
    status = process.popen.returncode
    if status == DONE:
        outcome.seconds[process.trial.name] = time.monotonic() - process.began
        done(process.trial)
    elif not outcome.stopped:
        outcome.failures[process.trial.name] = _last_words(process.trial.folder / "log.txt", status)


def _last_words(log: Path, status: int) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = lines[-1].removeprefix("fastmim: ") if lines and status > 0 else f"it ended with status {status}"
    return f"{said} (see {log})"
