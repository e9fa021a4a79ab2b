"""Run the attack: `make attack SCALE=0.05 SEED=1`; a single case, whose folder is kept: `make attack ONLY=kills CASE=17`."""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from attack import forks, table, world
from attack.outcome import Outcome
from attack.world import World

NAMES = (
    "kills",
    "signals",
    "worlds",
    "disks",
    "images",
    "bombs",
    "pickles",
    "texts",
    "archives",
    "packs",
    "runs",
    "weights",
)
"""The modules, in the order in which they are run."""


def main() -> None:
    """Attack, print a table, and exit with 1 if a promise was broken or not tried enough."""
    parser = argparse.ArgumentParser(prog="attack", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("promises", nargs="*", metavar="PROMISE", help=f"[default: all of {', '.join(NAMES)}]")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the cases to try")
    parser.add_argument("--seed", type=int, default=0, help="decides every case")
    parser.add_argument("--case", type=int, help="the number of the only case to try")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--minutes", type=float, default=45.0, help="begin no case after so long")
    parser.add_argument("--verbose", action="store_true", help="say what every case did")
    parser.add_argument("--record", type=Path, help="JSON file to write the table and the failing cases to")
    asked = parser.parse_args()
    if unknown := set(asked.promises) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(NAMES)}")
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        signal.signal(signal.Signals[name], handler)  # `nohup` and `&` have them ignored, which commands inherit
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="attack-")).resolve()
    try:
        isolate(root)
        forks.warm()
        world.build(root / "world")
        print(f"seed {asked.seed}, scale {asked.scale:g}: begun after {time.monotonic() - began:.0f} s", flush=True)
        rows = [attack(name, asked, root, began + 60 * asked.minutes) for name in asked.promises or NAMES]
    finally:
        if asked.case is None:
            shutil.rmtree(root, ignore_errors=True)
        else:
            print(f"kept {root}")
    print(table.describe(rows))
    if asked.record:
        table.write(asked.record, rows, scale=asked.scale, seed=asked.seed, seconds=time.monotonic() - began)
    sys.exit(any(row["failures"] or row["cases"] < row["planned"] for row in rows))


def isolate(root: Path) -> None:
    """Caches, home and temporary files of the attacked commands are inside the attack's folder."""
    for name, variable in (("cache", "XDG_CACHE_HOME"), ("home", "HOME"), ("tmp", "TMPDIR")):
        (root / name).mkdir()
        os.environ[variable] = str(root / name)
    tempfile.tempdir = None
    os.environ |= {"OMP_NUM_THREADS": "1"}


def attack(name: str, asked: argparse.Namespace, root: Path, deadline: float) -> dict[str, Any]:
    """Try a promise; print every failing case with the way to repeat it; return its row of the table."""
    module = importlib.import_module(f"attack.{name}")
    planned = 1 if asked.case is not None else max(1, round(module.CASES * asked.scale))
    numbers = [asked.case] if asked.case is not None else range(planned)
    shared, cases = root / f"shared-{name}", root / f"cases-{name}"
    cases.mkdir()
    began = time.monotonic()
    if prepare := getattr(module, "prepare", None):
        shared.mkdir()
        prepare(World(root / "world", cases, shared))
    make_world = functools.partial(World, root / "world", shared=shared)
    case = functools.partial(try_case, module, asked.seed, make_world, cases, asked.case is None)
    in_time = (number for number in numbers if time.monotonic() < deadline)
    row: dict[str, Any] = {"name": name, "promise": module.PROMISE, "planned": planned, "cases": 0, "tries": 0}
    row |= {"failures": 0, "tracebacks": 0, "failing": []}
    for number, outcome in forks.spread(case, in_time, jobs=asked.jobs, seconds=module.SECONDS, folder=cases):
        row["cases"] += 1
        row["tries"] += outcome.tries
        row["failures"] += len(outcome.faults)
        row["tracebacks"] += sum(fault.startswith("traceback") for fault in outcome.faults)
        if asked.verbose and not outcome.faults:
            print(f"kept {name} {number}: {outcome.did}", flush=True)
        if outcome.faults:
            again = f"make attack ONLY={name} SEED={asked.seed} CASE={number}"
            row["failing"].append({"case": number, "did": outcome.did, "faults": outcome.faults, "again": again})
            print(
                f"FAILED {name} {number}: {outcome.did}", *outcome.faults, f"again: {again}", sep="\n    ", flush=True
            )
    row["seconds"] = round(time.monotonic() - began, 1)
    print(table.line(row), flush=True)
    return row


def try_case(
    module: ModuleType, seed: int, make_world: Callable[[Path], World], cases: Path, tidy: bool, number: int
) -> Outcome:
    """Make one case in a folder of its own."""
    folder = cases / f"{number}"
    folder.mkdir()
    os.chdir(folder)
    random = Random(f"{seed} {module.__name__} {number}")
    outcome = module.attempt(make_world(folder), random, number)
    if tidy:
        shutil.rmtree(folder, ignore_errors=True)
        for log in cases.glob(f"{number}-*"):
            log.unlink()
    return outcome


if __name__ == "__main__":
    main()
