"""Trials as processes, side by side where there are devices, stopped together, resumed one by one."""

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

from fastmim.studies import trial
from fastmim.studies.settings import StudyConfig
from fastmim.system import devices
from fastmim.system.signals import StopSignals

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Slots:
    """Where runs go: a device for each that may run at the same time."""

    devices: tuple[str, ...]
    threads: int | None
    """Threads of each run on the processor; None on accelerators."""
    num_workers: int
    """Data processes of each run."""

    def describe(self) -> str:
        """In words."""
        kinds = ", ".join(dict.fromkeys(self.devices))
        threads = f", {self.threads} thread{'s' if self.threads != 1 else ''} each" if self.threads else ""
        return f"{len(self.devices)} at a time on {kinds}{threads}"


def find_slots(config: StudyConfig) -> Slots:
    """The devices of a study, or RequestError where one is not there."""
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


@dataclass(frozen=True)
class Trial:
    """A process to be: a folder, and the runs for a device."""

    name: str
    folder: Path
    runs: Callable[[str], dict[str, Any]]
    """Device -> settings by the run's name."""

    def results(self) -> dict[str, Any] | None:
        """The numbers of all its runs; None unless all are done."""
        names = self.runs("cpu")
        files = {name: trial.result_file(self.folder, name) for name in names}
        return {name: trial.read_json(file) for name, file in files.items()} if _all_exist(files.values()) else None


def _all_exist(files: Any) -> bool:
    return all(file.exists() for file in files)


@dataclass
class Outcome:
    """How the trials ended."""

    stopped: bool = False
    """A signal asked to stop; what ran has been saved."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time of each process that finished, by the trial's name."""
    failures: dict[str, str] = field(default_factory=dict)
    """What the others said last."""


@dataclass
class _Process:
    trial: Trial
    slot: int
    popen: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float


def run_all(trials: Sequence[Trial], slots: Slots, *, lock: int, done: Callable[[Trial], None]) -> Outcome:
    """Run trials in their order, as many at a time as there are slots; those that are done are passed over.

    Args:
        lock: File descriptor of `locking.hold`; the processes keep it too.
        done: Called after each trial that finished.
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
                    process.popen.terminate()
            time.sleep(_POLL_SECONDS)
            for process in [p for p in running if p.popen.poll() is not None]:
                running.remove(process)
                free.append(process.slot)
                _finish(process, outcome, done)
        outcome.stopped |= stop.requested
    return outcome


def _start(job: Trial, slot: int, slots: Slots, lock: int) -> _Process:
    job.folder.mkdir(parents=True, exist_ok=True)
    trial.write_json(job.folder / trial.FILE, job.runs(slots.devices[slot]))
    threads = {} if slots.threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(slots.threads))
    log = (job.folder / "log.txt").open("ab")
    popen = subprocess.Popen(
        [sys.executable, "-m", "fastmim.studies.trial", str(job.folder / trial.FILE)],
        stdin=subprocess.PIPE,  # the leash: it ends with this process, however that ends
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | threads,
        pass_fds=(lock,),
        # A terminal's Ctrl-C goes to a whole session; a run that got it twice would not save itself.
        start_new_session=True,
    )
    return _Process(job, slot, popen, log, time.monotonic())


def _finish(process: _Process, outcome: Outcome, done: Callable[[Trial], None]) -> None:
    process.log.close()
    assert process.popen.stdin
    process.popen.stdin.close()
    status = process.popen.returncode
    if status == trial.DONE:
        outcome.seconds[process.trial.name] = time.monotonic() - process.began
        done(process.trial)
    elif not outcome.stopped:
        outcome.failures[process.trial.name] = _last_words(process.trial.folder / "log.txt", status)


def _last_words(log: Path, status: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1].removeprefix("fastmim: ") if lines and status > 0 else f"it ended with status {status}"
    return f"{said} (see {log})"
