"""What a source of a thousand million images costs a process: `python benchmarks/billion.py`.

The images are made from their index, in a dataset that has a length and no list. Measured in a fresh process: seconds
of a call of the loader until its first batch, with two workers; the peak memory of a pre-training of a few steps and of
its largest worker, less that of a process that has only imported torch and timm; and whether the indices of 1,000
steps, as two processes share them, are a slice of a permutation.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastmim
from fastmim.bench import records
from fastmim.data.loader import load
from fastmim.data.order import StepSampler
from fastmim.data.sources.objects import Given, open_given

NUM, BATCH, STEPS, SIDE = 10**9, 256, 1000, 64
NETWORK = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
}
BASELINE = "import resource, timm, torch; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


class MadeUp:
    """Pixels from the index."""

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < NUM:
            raise IndexError(index)
        return np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def peak(who: int) -> float:
    """MB."""
    return resource.getrusage(who).ru_maxrss / 1000


def measure() -> dict[str, Any]:
    """Of this process, which should be fresh."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    settings = {"size": 32, "seed": 0, "global_batch": BATCH, "first_step": 0, "last_step": STEPS, "num_workers": 2}
    with closing(load(open_given(Given(MadeUp(), name="data")), **settings)) as batches:
        next(batches)
        first_batch = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as out:
        quiet = {"trackers": "none", "report": "never", "picture_every": "never", "num_workers": 2, "device": "cpu"}
        run = fastmim.pretrain(data=MadeUp(), out=out, img_size=32, batch_size=BATCH, steps=5, **NETWORK, **quiet)
        assert run.finished
    return {
        "first_batch_s": first_batch,
        "peak_mb": peak(resource.RUSAGE_SELF),
        "worker_peak_mb": peak(resource.RUSAGE_CHILDREN),
    }


def distinct() -> bool:
    """Whether 1,000 steps in the middle of an epoch have distinct images, and two processes those of one."""
    first = NUM // BATCH // 2
    whole = [part for _, part in StepSampler(NUM, BATCH, 0, first, first + STEPS)]
    shares = [StepSampler(NUM, BATCH, 0, first, first + STEPS, rank=rank, world_size=2) for rank in range(2)]
    joined = [np.concatenate([a, b]) for (_, a), (_, b) in zip(*shares, strict=True)]
    together = np.concatenate(whole)
    in_range = bool(together.min() >= 0 and together.max() < NUM)
    return in_range and len(np.unique(together)) == STEPS * BATCH and np.array_equal(together, np.concatenate(joined))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--here", action="store_true", help="measure this process and print, as the script does")
    if parser.parse_args().here:
        print(json.dumps(measure()))
        return
    bare = float(subprocess.run([sys.executable, "-c", BASELINE], check=True, capture_output=True).stdout) / 1000
    measured = subprocess.run([sys.executable, __file__, "--here"], check=True, stdout=subprocess.PIPE).stdout
    found = json.loads(measured.splitlines()[-1])
    records.write(
        Path(__file__).parent / "records",
        "billion",
        show=True,
        claim="10^9 images take under 1 GB above torch's own memory, and the first batch comes within 10 s.",
        config={"images": NUM, "batch": BATCH, "steps": STEPS, "side": SIDE, "network": NETWORK},
        raw=found | {"torch_mb": bare},
        summary={
            "first_batch_s": found["first_batch_s"],
            "mb_above_torch": found["peak_mb"] - bare,
            "worker_mb_above_torch": found["worker_peak_mb"] - bare,
            "a_slice_of_a_permutation": distinct(),
        },
    )


if __name__ == "__main__":
    main()
