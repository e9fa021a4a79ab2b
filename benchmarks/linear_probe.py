"""CPU seconds of the linear probe's grid of heads: `OMP_NUM_THREADS=1 python benchmarks/linear_probe.py`.

The features are random, since their values do not change the work: 45,000 of 384 numbers, 100 classes, 24 heads,
2,000 steps of 1,024 images. A round makes a tenth of the steps, and its seconds count ten times. For comparison, all
heads are trained to the end too (`linear_probe_accuracy.py` measures what the choice of some of them costs).
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch

from fastmim.bench import records
from fastmim.bench.timing import spread, take_turns
from fastmim.system.devices import resolve_bf16
from fastmim.transfer.features.scores import RUNGS, LabelledFeatures, linear

NUM, WIDTH, CLASSES, STEPS, SHARE = 45_000, 384, 100, 2000, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    features = LabelledFeatures(
        torch.randn(NUM, WIDTH, generator=generator), torch.randint(CLASSES, (NUM,), generator=generator)
    )
    few = LabelledFeatures(features.features[:100], features.labels[:100])
    fast = resolve_bf16("auto", torch.device("cpu"))
    sides = {
        f"{name}, {heads}": functools.partial(linear, features, few, num_steps=STEPS // SHARE, bf16=bf16, rungs=rungs)
        for name, bf16 in {"chosen": fast, "float32": False}.items()
        for heads, rungs in {"halving": RUNGS, "every head": ()}.items()
    }
    times = take_turns(sides, rounds=options.rounds, warm_up=0)
    seconds = {name: [SHARE * value for value in values] for name, values in times.cpu.items()}
    records.write(
        Path(__file__).parent / "records",
        "linear-probe",
        show=True,
        claim="The grid of a linear probe takes under 20 seconds of CPU on a processor with bf16 matrix products.",
        config=vars(options) | {"bf16": fast, "images": NUM, "width": WIDTH, "classes": CLASSES, "steps": STEPS},
        raw=times.raw(),
        summary={
            "seconds": spread(seconds["chosen, halving"]),
            "float32_seconds": spread(seconds["float32, halving"]),
            "seconds_of_each": {name: spread(values) for name, values in seconds.items()},
        },
    )


if __name__ == "__main__":
    main()
