"""The time that `--init timm:NAME` adds to the start of a run, without a network and with the weights in the cache.

    python benchmarks/init_offline.py

Two commands take turns: one step of pre-training from random weights, and the same from published ones. The cache holds
a file of the published weights' layout and size with random values. To be run where the hub cannot be reached.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
from safetensors.torch import save_file

from fastmim.bench import records
from fastmim.bench.timing import spread
from fastmim.system import hub


def fill(cache: Path, repository: str, name: str) -> int:
    """Put a model with random weights into the cache as a download would have done; its size in bytes."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "snapshots/0123abc").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text("0123abc")
    file = root / "snapshots/0123abc/model.safetensors"
    save_file(timm.create_model(name).state_dict(), file)
    return file.stat().st_size


def start(folder: Path, *words: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a run of one step, process start and imports included."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        run = ["pretrain", "--data", "samples", "--steps", "1", "--batch-size", "2", "--num-workers", "0"]
        quiet = ["--picture-every", "never", "--report", "never", "--trackers", "none", "--out", f"{out}/run"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "fastmim", *run, *quiet, *words]
        environment = os.environ | {"HF_HUB_CACHE": str(folder / "cache")}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return time.perf_counter() - began, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224.augreg_in21k_ft_in1k")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=Path, default=Path(__file__).parent / "records")
    options = parser.parse_args()
    if hub.reachable():
        raise SystemExit("the hub can be reached; expected a machine without it, for which the figure is")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        repository = timm.get_pretrained_cfg(options.model).hf_hub_id
        size = fill(folder / "cache", repository, options.model)
        sides = {"random": ("--backbone", options.model), "published": ("--init", f"timm:{options.model}")}
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for number in range(options.rounds + 1):
            for name, words in sides.items():
                found = start(folder, *words)
                if number:  # the first fills the system's caches
                    took[name].append(found)
    more = [[b[clock] - a[clock] for a, b in zip(took["random"], took["published"], strict=True)] for clock in range(2)]
    records.write(
        options.records,
        "init-offline",
        show=True,
        claim="Published weights in the cache add little to a run's start, and nothing waits for a network.",
        config={"model": options.model, "bytes": size, "rounds": options.rounds},
        raw=took,
        summary={
            "seconds": {name: statistics.median(wall for wall, _ in pairs) for name, pairs in took.items()},
            "more seconds": spread(more[0]),
            "more CPU seconds": spread(more[1]),
        },
    )


if __name__ == "__main__":
    main()
