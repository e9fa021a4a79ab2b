"""Signals at random moments: while a command starts, two at once, and while it waits for data that does not come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from attack import forks, kills
from attack.outcome import Ended, Outcome, unclean
from attack.world import World, pretrain

PROMISE = "SIGTERM, SIGUSR1, SIGINT and SIGHUP at any moment: exit status 75, and nothing is lost"
CASES = 120
SECONDS = 200
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
KINDS = ("plain", "staged", "finetune", "pack", "embed")
PATIENCE = 40
"""Seconds within which a command must have stopped."""


def prepare(world: World) -> None:
    """Run every command undisturbed."""
    kills.undisturbed(world, KINDS)


def attempt(world: World, random: Random, number: int) -> Outcome:
    """Signal a command in one of three ways; then run it to its end and compare."""
    chosen = random.sample(SIGNALS, 2) if random.random() < 0.5 else [random.choice(SIGNALS)] * random.randint(1, 2)
    send = Sending(chosen, random.uniform(0, 0.02), to_group=random.random() < 0.4)
    return random.choice([starting, starting, training, training, stalled])(world, random, send)


class Sending:
    """One or two signals, to the process or to its group."""

    def __init__(self, numbers: list[signal.Signals], apart: float, *, to_group: bool) -> None:
        self.numbers, self.apart, self.to_group = numbers, apart, to_group

    def __str__(self) -> str:
        names = " and ".join(number.name for number in self.numbers)
        return f"{names}, {1000 * self.apart:.0f} ms apart, to the {'group' if self.to_group else 'process'}"

    def __call__(self, pid: int) -> None:
        for number in self.numbers:
            with suppress(ProcessLookupError):
                (os.killpg if self.to_group else os.kill)(pid, number)
            time.sleep(self.apart)


def starting(world: World, random: Random, send: Sending) -> Outcome:
    """The real command, while it imports and prepares."""
    out, after = world.folder / "plain", random.uniform(0, 5)
    arguments = pretrain(world.photos, out, steps=100_000, num_workers=random.choice((0, 1)), save_every=1000)
    log = world.log()
    with Path(f"{log}.out").open("wb") as to, Path(f"{log}.err").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastmim", *arguments],
            stdin=subprocess.DEVNULL, stdout=to, stderr=errors, start_new_session=True,
        )  # fmt: skip
        _wait_for_handlers(process.pid)
        time.sleep(after)
        send(process.pid)
        ended = forks.wait(process.pid, log, seconds=PATIENCE)
        process.returncode = ended.status
    return Outcome(
        did=f"{send} {after:.2f} s after the start of fastmim {' '.join(arguments)}",
        faults=[f"starting, {send}: {fault}" for fault in unclean(ended, allowed=[75])],
    )


def _wait_for_handlers(pid: int) -> None:
    """Until the process handles SIGTERM, or has ended: one that has just started cannot."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and not _over(pid):
        with suppress(OSError):
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            if int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1:
                return
        time.sleep(0.005)


def training(world: World, random: Random, send: Sending) -> Outcome:
    """Any command that resumes, at any moment of its work."""
    kind = random.choice(KINDS)
    out = world.folder / kind
    arguments = kills.commands(world, out, random.choice((0, 1)))[kind]
    after = random.uniform(0, float((world.shared / f"{kind}.seconds").read_text()))
    return _signalled(world, out, arguments, send, after, lambda: None)


def stalled(world: World, random: Random, send: Sending) -> Outcome:
    """A run whose worker waits for an image for ever, as on a dead network disk."""
    out, after_reads = world.folder / "plain", random.randint(0, 100)
    arguments = kills.commands(world, out, 1)["plain"]
    return _signalled(world, out, arguments, send, random.uniform(1, 4), lambda: stall(after_reads))


def stall(after_reads: int) -> None:
    """From now on, reading an image file succeeds so many times, and then never returns."""
    from fastmim.data.sources import files

    read, num_read = files.read_regular, 0

    def read_slowly(path: str | Path) -> bytes:
        nonlocal num_read
        num_read += 1
        if num_read > after_reads:
            time.sleep(3600)
        return read(path)

    files.read_regular = read_slowly


def _signalled(
    world: World, out: Path, arguments: list[str], send: Sending, after: float, before: Callable[[], object]
) -> Outcome:
    pid = forks.start(arguments, world.log(), before)
    _wait_for_handlers(pid)
    until = time.monotonic() + after
    while time.monotonic() < until and not _over(pid):
        time.sleep(0.002)
    over = _over(pid)
    send(pid)
    ended = forks.wait(pid, world.log(), seconds=PATIENCE)
    faults = [f"{send}: {fault}" for fault in unclean(ended, allowed=[0] if over else [0, 75])]
    faults += _finish(world, out, arguments)
    return Outcome(did=f"{send} {after:.2f} s after the start of fastmim {' '.join(arguments)}", faults=faults)


def _over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _finish(world: World, out: Path, arguments: list[str]) -> list[str]:
    ended: Ended = forks.run(arguments, world.log(), seconds=90)
    if ended.status:
        return [f"and then: {fault}" for fault in unclean(ended, allowed=[0])]
    return kills.differences(world.shared / out.name, out)
