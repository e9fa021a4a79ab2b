"""CPU seconds and size of a run's report: `OMP_NUM_THREADS=1 python benchmarks/report.py`.

A run of 500 steps is trained with 50 pictures, and its page is made in a process of its own, as `fastmim report` does.
The same run with a metrics.jsonl of 10**6 lines follows. What the report costs training is the time of
`keep_current` in the process that trained, after a new picture, as a share of the run's CPU time.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fastmim
from fastmim.bench import records
from fastmim.bench.timing import spread
from fastmim.reporting import writing

ROUNDS, LINES, STEPS = 3, 10**6, 500
RUN: dict[str, Any] = {
    "data": "samples",
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
    "img_size": 64,
    "batch_size": 16,
    "steps": STEPS,
    "lr": 3.2e-2,
    "picture_every": "10 steps",
    "report": "never",
    "trackers": "none",
    "num_workers": 0,
    "device": "cpu",
}


def in_own_process(run: Path) -> float:
    """CPU seconds of `fastmim report`, process start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "fastmim", "report", str(run)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def lengthen(metrics: Path) -> None:
    """Repeat the lines with a loss, with rising steps, up to `LINES`."""
    rows = [row for row in map(json.loads, metrics.read_text().splitlines()) if "loss" in row]
    with metrics.open("w") as file:
        for number in range(LINES):
            file.write(json.dumps(rows[number % len(rows)] | {"step": 10 * (number + 1)}) + "\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            fastmim.pretrain(out=run, **RUN)
        trained = time.process_time() - began
        writing.keep_current(run, print, ended=False)
        newest = max((run / "samples").glob("step_*.png"))
        inside = []
        for number in range(ROUNDS):
            shutil.copy(newest, newest.with_name(f"step_{STEPS + number + 1:09d}.png"))
            began = time.process_time()
            writing.keep_current(run, print, ended=False)
            inside.append(time.process_time() - began)
        page = [in_own_process(run) for _ in range(ROUNDS)]
        size = (run / "report.html").stat().st_size
        lengthen(run / "metrics.jsonl")
        long = [in_own_process(run) for _ in range(ROUNDS)]
        long_size = (run / "report.html").stat().st_size
    records.write(
        Path(__file__).parent / "records",
        "report",
        show=True,
        claim="a page of 500 steps and 50 pictures takes under 2 s of CPU and 3 MB, one of 10**6 log lines under 6 s",
        config={"rounds": ROUNDS, "lines": LINES, "run": RUN},
        raw={"page": page, "long": long, "inside": inside, "trained": trained},
        summary={
            "page_seconds": spread(page),
            "page_bytes": size,
            "long_seconds": spread(long),
            "long_bytes": long_size,
            "inside_seconds": spread(inside),
            "training_seconds": trained,
        },
    )


if __name__ == "__main__":
    main()
