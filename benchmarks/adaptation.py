"""Whether `fastmim adapt` helps where it should, and what its settings do, in small.

    python benchmarks/halves.py runs/halves
    OMP_NUM_THREADS=1 python benchmarks/adaptation.py runs/halves --out runs/adaptation

A small ViT that was trained with the labels of one half of Fashion-MNIST's classes plays the public model. It is
adapted to the images of the other half, without labels, in several ways and with several seeds, each with a public
model of its own: what one of them gains says little about the next. As a control it is also adapted to the images that
it was trained on, where nothing is to be gained. The record has the linear probe and kNN on 2,000 images before and
after, and the verdicts. Each part is a run of its own: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

import fastmim
from fashion_mnist import AUGMENTATION, NETWORK
from fastmim.bench import records
from fastmim.published.pretraining import RECIPES
from fastmim.studies.differences import interval

COMMON: dict[str, Any] = {"img_size": 28, "batch_size": 128, "trackers": "none", "report": "never", "num_workers": 0}
LR = 1.6e-3
WAYS: dict[str, dict[str, Any]] = {
    "lr 1e-4": {"lr": 1e-4},
    "lr 4e-4": {"lr": 4e-4},
    "lr 1.6e-3": {"lr": LR},
    "lr 6.4e-3": {"lr": 6.4e-3},
    "lr 1.6e-3, no layer decay": {"lr": LR, "layer_decay": 1.0},
    "lr 1.6e-3, teacher alone": {"lr": LR, "target": "teacher"},
    "lr 1.6e-3, HOG alone": {"lr": LR, "target": "hog", "teacher": None},
}


def public_network(halves: Path, out: Path, *, steps: int, seed: int) -> Path:
    """Train a network that plays the public model, with labels, or go on with it."""
    data, network = str(halves / "public"), {"backbone": "vit_tiny_patch16_224", "backbone_args": NETWORK}
    how = COMMON | AUGMENTATION | network | {"steps": steps, "lr": 4e-3, "eval_every": "100%", "seed": seed}
    run = fastmim.finetune(data=data, weights="none", out=out, **how)
    if not run.finished:
        raise SystemExit(f"stopped at step {run.step}; run the same command to go on")
    return run.out


def adapt(init: Path, half: Path, out: Path, *, steps: int, seed: int, **way: Any) -> dict[str, Any]:
    """Adapt the public network to one half of the classes, and return its scores before and after."""
    fixed = {"probe_every": "100%", "picture_every": "never"}
    how = COMMON | fixed | way | {"steps": steps, "seed": seed}
    run = fastmim.adapt(init=init, data=str(half / "train"), probe=str(half / "probe"), out=out, **how)
    if not run.finished:
        raise SystemExit(f"stopped at step {run.step}; run the same command to go on")
    found = json.loads((out / "adaptation.json").read_text())
    probes = [f"{name} {when}" for name in ("linear", "knn") for when in ("before", "after")]
    scores = {probe: 100 * found[probe.split()[1]][f"{probe.split()[0]}_top1"] for probe in probes}
    return scores | {"verdict": found["verdict"]["word"]}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The gain of each probe in points with its 95 % interval over seeds, and the verdicts."""
    gains = {}
    for name in ("linear", "knn"):
        found = interval([run[f"{name} after"] - run[f"{name} before"] for run in runs])
        ends = zip(("mean", "low", "high"), found, strict=True)
        gains[name] = {end: value for end, value in ends if math.isfinite(value)}
    before = statistics.mean(run["linear before"] for run in runs)
    return {"gain": gains, "verdicts": [run["verdict"] for run in runs], "linear before": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("halves", type=Path, help="what halves.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--steps", type=int, default=200, help="of an adaptation, of 128 images")
    parser.add_argument("--public-steps", type=int, default=600, help="of the public network's training")
    parser.add_argument("--records", type=Path, default=Path(__file__).parent / "records")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = {f"own images, {name}": (options.halves / "own", way) for name, way in WAYS.items() if name in options.ways}
    controls = {name: WAYS[name] for name in options.ways if set(WAYS[name]) == {"lr"}}
    ways |= {f"the images it was trained on, {name}": (options.halves / "public", controls[name]) for name in controls}
    raw: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for seed in range(options.seeds):
        public = public_network(options.halves, options.out / f"public-{seed}", steps=options.public_steps, seed=seed)
        for name, (half, way) in ways.items():
            out = options.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            raw[name].append(adapt(public, half, out, steps=options.steps, seed=seed, **way))
            print(f"{out.name}: {raw[name][-1]}", flush=True)
    records.write(
        options.records,
        "adaptation",
        show=True,
        claim="Points that adapting to unlabelled images of other classes gains on linear probe and kNN, by settings.",
        config={key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        | {
            "network": NETWORK,
            "common": COMMON,
            "recipe": RECIPES["adapt"](),
            "ways": {name: WAYS[name] for name in options.ways},
        },
        raw=raw,
        summary={name: summary(runs) for name, runs in raw.items()},
    )


if __name__ == "__main__":
    main()
