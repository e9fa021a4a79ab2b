"""CPU seconds of commands that do not import torch, process start included: `python benchmarks/help_time.py`."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from fastmim.bench import records
from fastmim.bench.timing import spread

ROUNDS = 15


def measure(name: str, claim: str, *words: str) -> None:
    """Record the CPU seconds of a command."""
    seconds = []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "fastmim", *words], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    records.write(
        Path(__file__).parent / "records",
        name,
        show=True,
        claim=claim,
        config={"rounds": ROUNDS},
        raw={"seconds": seconds},
        summary={"seconds": spread(seconds)},
    )


def main() -> None:
    measure("help", "fastmim --help takes under 0.5 s of CPU", "--help")
    measure("backbones", "fastmim backbones 'swin*' takes under 2 s of CPU", "backbones", "swin*")


if __name__ == "__main__":
    main()
