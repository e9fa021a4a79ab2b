"""kill -9 at random moments, over every command that resumes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from attack import forks
from attack.outcome import Ended, Outcome, tree, unclean
from attack.world import FEATURES, World, pretrain, tensors, words
from conftest import SMALL
from small_study import settings as study_settings

PROMISE = "kill -9 at any moment, the same command again: the same bits as if never stopped"
CASES = 200
SECONDS = 300
MAX_KILLS = 2

LONG: dict[str, Any] = {"steps": 36, "save_every": 3, "log_every": 1}
TUNING: dict[str, Any] = {key: SMALL[key] for key in ("backbone", "backbone_args", "img_size", "batch_size", "device")}
TUNING |= LONG | {"trackers": "none", "weights": "none", "ema": 0.9, "eval_every": "12 steps"}


def commands(world: World, out: Path, workers: int) -> dict[str, list[str]]:
    """The arguments of each kind of command."""
    more = {"num_workers": workers}
    embedding = FEATURES | {"weights": str(world.run), "batch_size": 2} | more
    study = study_settings(world.labelled, probe="none", labels="4", steps=12)
    return {
        "plain": pretrain(world.photos, out, **LONG, **more),
        "staged": pretrain(world.photos, out, stages="32:0.5,48:0.5", picture_every="9 steps", **LONG, **more),
        "spoilt": pretrain(world.spoilt, out, **LONG, **more),
        "finetune": words("finetune", world.labelled, out, TUNING | more),
        "pack": ["pack", str(world.photos), str(out), "--short-side", "48", "--num-workers", str(workers)],
        "embed": words("embed", world.photos, out.with_suffix(".npy"), embedding),
        "study": _study(world, out, study),
    }


KINDS = 6 * ["plain"] + 4 * ["staged"] + 3 * ["spoilt"] + 3 * ["finetune"] + 2 * ["pack", "embed"] + ["study"]
"""A study's trials are processes of their own, which import torch: few of them."""


def _study(world: World, out: Path, settings: dict[str, Any]) -> list[str]:
    several = {key: settings.pop(key) for key in ("sweep", "set")}
    found = words("study", Path(settings.pop("data")), out, settings)
    return found + [word for key, values in several.items() for value in values for word in (f"--{key}", value)]


def prepare(world: World) -> None:
    """Run every command undisturbed."""
    undisturbed(world, dict.fromkeys(KINDS))


def undisturbed(world: World, kinds: Iterable[str]) -> None:
    """Run commands undisturbed, for `differences` to compare with."""
    for kind in kinds:
        out = world.shared / kind
        began = time.monotonic()
        ended = forks.run(commands(world, out, 0)[kind], world.log(kind), seconds=300)
        if ended.status:
            raise RuntimeError(f"{kind} ended with {ended.status} undisturbed: {ended.err}")
        (world.shared / f"{kind}.seconds").write_text(str(time.monotonic() - began))


def attempt(world: World, random: Random, number: int) -> Outcome:
    """Start a command, kill it, and so on; then let it end, and compare."""
    kind, workers = random.choice(KINDS), random.choice((0, 1, 1, 2))
    out = world.folder / kind
    arguments = commands(world, out, 0 if kind == "study" else workers)[kind]
    whole = float((world.shared / f"{kind}.seconds").read_text())
    outcome = Outcome(tries=0, did=f"fastmim {' '.join(arguments)}; kills:")
    for _ in range(random.randint(1, MAX_KILLS)):
        kill, after = random.choice([kill_group, kill_main, kill_after_term, stop]), random.uniform(0, 1.2 * whole)
        outcome.tries += 1
        outcome.did += f" {kill.__name__} after {after:.2f} s,"
        outcome.faults += _disturb(arguments, world, kill, after, random)
    ended = forks.run(arguments, world.log(), seconds=max(90, 20 * whole))
    outcome.tries += 1
    outcome.faults += unclean(ended, allowed=[0])
    if ended.status == 0:
        outcome.faults += differences(world.shared / kind, out)
        outcome.faults += [f"left behind: {name}" for name in leftovers(out)]
    return outcome


def _disturb(
    arguments: list[str], world: World, kill: Callable[[int, Random], int | None], after: float, random: Random
) -> list[str]:
    pid = forks.start(arguments, world.log())
    until = time.monotonic() + after
    while time.monotonic() < until and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        time.sleep(0.005)
    over = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    expected = 0 if over else kill(pid, random)
    left = orphans(pid) if kill is kill_main else []
    ended = forks.wait(pid, world.log(), seconds=60)
    # A command that was about to end may win the race.
    if ended.status == 0 or expected is None:
        return left + _unless_killed(ended, [0, -signal.SIGKILL, 75])
    return left + _unless_killed(ended, [expected])


def _unless_killed(ended: Ended, allowed: list[int]) -> list[str]:
    """`unclean`, where a command that kill -9 ended need not have said anything.

    Nor one that SIGTERM ended when its work was done and it was about to exit.
    """
    if ended.status == -signal.SIGTERM and ("done: " in ended.out or "wrote " in ended.out):
        return []
    if ended.status == -signal.SIGKILL in allowed and not ended.hung:
        return [f"traceback before the kill: {ended.err[-800:]}"] if "Traceback" in ended.err else []
    return unclean(ended, allowed=allowed)


def kill_group(pid: int, random: Random) -> int:
    """kill -9 of everything at once, as the out-of-memory killer of a container does."""
    with suppress(ProcessLookupError):  # it has just ended, which its parent has yet to see
        os.killpg(pid, signal.SIGKILL)
    return -signal.SIGKILL


def kill_main(pid: int, random: Random) -> int:
    """kill -9 of the main process only: the workers must follow by themselves."""
    os.kill(pid, signal.SIGKILL)
    return -signal.SIGKILL


def kill_after_term(pid: int, random: Random) -> None:
    """SIGTERM, and kill -9 while it is being obeyed."""
    os.kill(pid, signal.SIGTERM)
    time.sleep(random.uniform(0, 0.1))
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def stop(pid: int, random: Random) -> int:
    """SIGTERM alone."""
    os.kill(pid, signal.SIGTERM)
    return 75


def orphans(pid: int) -> list[str]:
    """Workers that outlive the main process by half a minute."""
    until = time.monotonic() + 30
    while left := [member for member in forks.group_members(pid) if member != pid]:
        if time.monotonic() > until:
            return [f"orphans: the workers {left} outlive the main process"]
        time.sleep(0.05)
    return []


def differences(whole: Path, killed: Path) -> list[str]:
    """How what a command wrote differs from what it writes undisturbed."""
    kind = whole.name
    if kind == "pack":
        one, other = tree(whole), tree(killed)
    elif kind == "embed":
        one, other = ({end: path.with_suffix(end).read_bytes() for end in (".npy", ".csv")} for path in (whole, killed))
    else:
        one, other = weights_in(whole), weights_in(killed)
    different = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    return [f"differs from the uninterrupted run: {', '.join(sorted(different)[:4])}"] if different else []


def weights_in(out: Path) -> dict[str, bytes]:
    """All tensors of all finished runs in a directory."""
    return {
        f"{file.relative_to(out)}: {name}": tensor
        for file in sorted(out.rglob("weights.safetensors"))
        for name, tensor in tensors(file).items()
    }


def leftovers(out: Path) -> list[str]:
    """Temporary files that nobody removed."""
    names = (path for path in [*out.parent.iterdir(), *out.rglob("*")] if path.name != ".lock")
    return sorted(path.name for path in names if "tmp" in path.name or "partial" in path.name)
