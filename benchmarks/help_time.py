"""CPU seconds of `fastmim --help`, process start included: `python benchmarks/help_time.py`."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from fastmim.bench import records
from fastmim.bench.timing import spread

ROUNDS = 15


def main() -> None:
    seconds = []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "fastmim", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    records.write(
        Path(__file__).parent / "records",
        "help",
        show=True,
        claim="fastmim --help takes under 0.5 s of CPU",
        config={"rounds": ROUNDS},
        raw={"seconds": seconds},
        summary={"seconds": spread(seconds)},
    )


if __name__ == "__main__":
    main()
