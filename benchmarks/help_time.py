"""CPU seconds of `fastmim --help`, process start included: `python benchmarks/help_time.py`."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

import record

ROUNDS = 15


def main() -> None:
    seconds = []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "fastmim", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    summary = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    record.write(
        "help",
        claim="fastmim --help takes under 0.5 s of CPU",
        config={"rounds": ROUNDS},
        raw={"seconds": seconds},
        summary={"seconds": summary},
    )


if __name__ == "__main__":
    main()
