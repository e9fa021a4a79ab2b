"""The CPU time of building a pack, and the memory that a data worker does not share.

    OMP_NUM_THREADS=1 python benchmarks/packing.py

Packs with a short side of 256 pixels are built in this process from photographs of about 500 x 380 pixels and 100 KB,
the two codecs taking turns. A worker then reads batches of 128 crops of 128 pixels from the folder and from the packs;
its own memory is the system's Private_Dirty after it has read everything (Linux only).
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastmim
import wallpapers
from fastmim.bench import records
from fastmim.bench.corpus import SHORT_SIDE, cut_corpus, make_tiers
from fastmim.bench.timing import spread, take_turns
from fastmim.data.loader import load
from fastmim.data.sources import Source

CODECS = ("jpeg", "raw")
SIZE, BATCH = 128, 128


def build(folder: Path, out: Path, codec: str) -> None:
    """Build a pack and remove it."""
    with contextlib.redirect_stdout(None):
        fastmim.pack(folder, out, codec=codec, short_side=SHORT_SIDE, num_workers=0)
    shutil.rmtree(out)


def own_mib(source: Source, start_method: str) -> float:
    """MiB that a worker does not share once it has read all images."""
    steps = len(source) // BATCH
    stream = load(
        source,
        size=SIZE,
        seed=0,
        global_batch=BATCH,
        first_step=0,
        last_step=steps + 4,  # more than a worker reads ahead, so that it is alive after `steps` of them
        num_workers=1,
        start_method=start_method,
    )
    with contextlib.closing(stream):
        for _ in range(steps):
            next(stream)
        [worker] = multiprocessing.active_children()
        found = re.search(r"Private_Dirty:\s+(\d+) kB", Path(f"/proc/{worker.pid}/smaps_rollup").read_text())
        assert found
        return int(found[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "photos")
        folder.mkdir()
        cut_corpus(folder, options.num_images, wallpapers.photographs())
        sides = {codec: partial(build, folder, Path(temporary, "pack"), codec) for codec in CODECS}
        seconds = take_turns(sides, rounds=options.rounds).cpu
        tiers = make_tiers(folder, Path(temporary))
        memory: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for method in ("fork", "spawn"):
                for name, source in tiers.items():
                    memory.setdefault(f"{name}, {method}", []).append(own_mib(source, method))
    per_image = {codec: [1e3 * s / options.num_images for s in seconds[codec]] for codec in CODECS}
    summary: dict[str, Any] = {
        "cpu_ms_per_image": {codec: spread(values) for codec, values in per_image.items()},
        "worker_own_mib": {name: spread(values) for name, values in memory.items()},
    }
    records.write(
        Path(__file__).parent / "records",
        "packing",
        show=True,
        claim="Building takes milliseconds of CPU an image; a forked worker has little memory of its own.",
        config=vars(options) | {"short_side": SHORT_SIDE, "crop_size": SIZE, "batch": BATCH, "threads": 1},
        raw={"cpu_seconds": seconds, "worker_own_mib": memory},
        summary=summary,
    )


if __name__ == "__main__":
    main()
