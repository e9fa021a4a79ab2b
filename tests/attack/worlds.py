"""Runs of several processes, of which one, the one that started them, or all are killed or stopped at random moments."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from attack import forks, kills
from attack.outcome import Ended, Outcome, unclean
from attack.world import World, pretrain, tensors

PROMISE = (
    "kills and stops of a run of 1 to 3 processes, by turns with FSDP2: none is lost; in the same world the same bits"
)
CASES = 150
SECONDS = 400
MAX_KILLS = 3

WORLDS = ((1, False), (2, False), (2, True), (3, False), (3, True))
"""Number of processes, and whether they divide the model."""
SETTINGS: dict[str, Any] = {"batch_size": 12, "steps": 30, "save_every": 3, "log_every": 2}
PATIENCE = 100
"""Seconds within which all processes of a run have ended once one of them has."""
CLOSE = 2e-3
"""The largest difference of weights between worlds, whose sums differ in rounding."""


def arguments(world: World, out: Path, shard: bool, workers: int = 0) -> list[str]:
    """The words of the command, for each process."""
    return pretrain(world.photos, out, num_workers=workers, shard=shard, **SETTINGS)


def prepare(world: World) -> None:
    """Run every world undisturbed."""
    for count, shard in WORLDS:
        out = world.shared / name(count, shard)
        began = time.monotonic()
        for ended in finish(start(arguments(world, out, shard), count, world.log(out.name)), world.log(out.name)):
            if ended.status:
                raise RuntimeError(f"{out.name} ended with {ended.status} undisturbed: {ended.err}")
        out.with_suffix(".seconds").write_text(str(time.monotonic() - began))


def name(count: int, shard: bool) -> str:
    """Of a world."""
    return f"{count}{' divided' if shard else ''}"


def attempt(world: World, random: Random, number: int) -> Outcome:
    """Start a run, end it early, and so on in the same or in changing worlds; then let it end, and compare."""
    out, constant = world.folder / "run", random.random() < 0.6
    count, shard = random.choice(WORLDS)
    outcome = Outcome(tries=0, did="")
    for _ in range(random.randint(1, MAX_KILLS)):
        if not constant:
            count, shard = random.choice(WORLDS)
        outcome.tries += 1
        disturb(world, random, out, count, shard, outcome)
    if not constant:
        count, shard = random.choice(WORLDS)
    outcome.did += f"; to its end in {name(count, shard)}"
    log = world.log("end")
    ended = finish(start(arguments(world, out, shard), count, log), log)
    outcome.faults += [f"lost: {fault}" for process in ended for fault in unclean(process, allowed=[0])]
    if not outcome.faults:
        outcome.faults += differences(world.shared / name(count, shard), out, exactly=constant)
        outcome.faults += [f"left behind: {leftover}" for leftover in kills.leftovers(out)]
    return outcome


def disturb(world: World, random: Random, out: Path, count: int, shard: bool, outcome: Outcome) -> None:
    """Start the run in a world, and end it early in a random way."""
    by_agent = count > 1 and random.random() < 0.15
    number, whom = random.choice((signal.SIGKILL, signal.SIGTERM)), random.choice(("one", "all"))
    saving, words = random.random() < 0.4, arguments(world, out, shard, random.choice((0, 0, 1)))
    log = world.log(f"{outcome.tries}")
    whole = float((world.shared / f"{name(count, shard)}.seconds").read_text())
    if by_agent:  # which starts the processes anew, and they import torch
        processes = [forks.start([*words, "--devices", str(count)], Path(f"{log}-0"))]
        _until(lambda: (out / "metrics.jsonl").exists(), 60, processes)
    else:
        processes = start(words, count, log)
    after = random.uniform(0, 1.1 * whole)
    _until(lambda: False, after, processes)
    if saving:
        _until(lambda: any(out.glob("checkpoints/.tmp_step_*")), whole, processes)
    victims = processes if whom == "all" else [random.choice(processes)]
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    which = "the agent" if by_agent else whom
    outcome.did += f"{'; ' if outcome.did else ''}{name(count, shard)}: {number.name} to {which} after {after:.2f} s"
    outcome.did += " while saving" if saving else ""
    began = time.monotonic()
    if by_agent and number == signal.SIGKILL:
        outcome.faults += orphans(processes[0])
    for ended in finish(processes, log):
        if ended.hung:
            outcome.faults.append(f"hang: {PATIENCE} s after {number.name} to {which}: {ended.err[-200:]!r}")
        elif "Traceback" in ended.err + ended.out:
            outcome.faults.append(f"traceback after {number.name} to {which}: {ended.err[-600:]!r}")
        elif ended.status not in (0, 1, 2, 75, -number):
            outcome.faults.append(f"exit status {ended.status} after {number.name} to {which}: {ended.err[-200:]!r}")
    outcome.did += f", over after {time.monotonic() - began:.1f} s"


def start(words: list[str], count: int, log: Path) -> list[int]:
    """Start a command in `count` processes that find each other; their process ids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def at(rank: int) -> Callable[[], object]:
        return lambda: os.environ.update(shared, RANK=str(rank)) if count > 1 else None

    return [forks.start(words, Path(f"{log}-{rank}"), at(rank)) for rank in range(count)]


def finish(processes: Iterable[int], log: Path) -> list[Ended]:
    """Wait for the processes, which must end within the time."""
    until = time.monotonic() + PATIENCE
    return [
        forks.wait(pid, Path(f"{log}-{rank}"), seconds=max(1.0, until - time.monotonic()))
        for rank, pid in enumerate(processes)
    ]


def _until(happened: Callable[[], bool], seconds: float, processes: list[int]) -> None:
    """Wait until something has happened, the time is over, or a process has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not happened() and not any(map(_over, processes)):
        time.sleep(0.001)


def _over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def orphans(agent: int) -> list[str]:
    """Processes that outlive the one that started them: they see that it has gone once they have imported torch."""
    until = time.monotonic() + PATIENCE
    while left := [pid for pid in _all() if _parent_was(pid, agent)]:
        if time.monotonic() > until:
            return [f"orphans: the processes {left} outlive the one that started them"]
        time.sleep(0.05)
    return []


def _all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parent_was(pid: int, agent: int) -> bool:
    with suppress(OSError):
        return f"FASTMIM_PARENT={agent}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def differences(whole: Path, run: Path, *, exactly: bool) -> list[str]:
    """How the final weights differ from those of the undisturbed run in that world."""
    one, other = (tensors(folder / "weights.safetensors") for folder in (whole, run))
    if exactly:
        different = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
        return [f"other bits than the uninterrupted run: {', '.join(sorted(different)[:4])}"] if different else []
    import torch
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (whole, run))
    worst = max(float((ours[key] - theirs[key]).abs().max()) for key in ours if ours[key].dtype is torch.float32)
    return [f"weights {worst:.1e} apart from the uninterrupted run's"] if worst > CLOSE else []
