"""What pre-training on unlabelled pictures is worth for detection and segmentation, to small networks.

    python benchmarks/compose_scenes.py scenes/
    python benchmarks/dense_transfer.py scenes/ --out runs/dense-transfer [--seeds 0 1 2]

A small ViT and a small Swin are pre-trained by `fastmim.pretrain` on `scenes/unlabelled`, once each, then trained by
`fastmim.segment` on `scenes/ade` and by `fastmim.detect` on `scenes/coco` from these weights and from nothing, with
the same settings and several seeds; segmentation also with a linear head on frozen features. Each part is a run of its
own, so the same command goes on after an interruption. The record has mIoU, box AP and mask AP of all runs that the
folder holds, on pictures whose cut-outs and photographs are in no other part; so several commands can share the work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import fastmim
from fastmim.bench import records
from fastmim.studies.differences import interval
from fastmim.studies.results import spread

NETWORKS: dict[str, dict[str, Any]] = {
    "vit": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": {"embed_dim": 192, "depth": 8, "num_heads": 3},
    },
    "swin": {
        "backbone": "swin_tiny_patch4_window7_224",
        "backbone_args": {"embed_dim": 48, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16), "window_size": 4},
    },
}
SIZE = 128
PRETRAINING = {"img_size": SIZE, "batch_size": 64, "lr": 2.4e-3, "picture_every": "never"}
SEGMENTATION = {"img_size": SIZE, "batch_size": 16, "channels": 32, "num_pictures": 2}
DETECTION = {"img_size": SIZE, "batch_size": 8, "channels": 32, "num_regions": 48, "num_pictures": 2}
TASKS: dict[str, dict[str, Any]] = {
    "upernet": SEGMENTATION | {"head": "upernet", "lr": 5e-4 * 16, "steps": 600},
    "linear": SEGMENTATION | {"head": "linear", "lr": 1e-3 * 16, "steps": 200},
    "mask-rcnn": DETECTION | {"lr": 1e-3 * 32, "scale": (0.8, 1.25), "steps": 800},
}
WAYS = ("pre-trained", "scratch")
FIGURES = {"upernet": ("val_miou",), "linear": ("val_miou",), "mask-rcnn": ("val_box_ap", "val_mask_ap")}
QUIET = {"trackers": "none", "report": "never", "num_workers": 1}


def pretrain(network: str, scenes: Path, out: Path, *, epochs: float) -> Path:
    """Pre-train a network on the unlabelled pictures, or go on with it."""
    settings = PRETRAINING | {"epochs": epochs}
    run = fastmim.pretrain(data=str(scenes / "unlabelled"), out=out, **NETWORKS[network], **settings, **QUIET)
    if not run.finished:
        raise SystemExit(f"stopped at step {run.step}; run the same command to go on")
    return run.out


def transfer(network: str, task: str, scenes: Path, out: Path, *, weights: str, seed: int) -> None:
    """Train a detector or a segmenter, or go on with it."""
    begin = NETWORKS[network] if weights == "none" else {}
    train, data = (fastmim.detect, "coco") if task == "mask-rcnn" else (fastmim.segment, "ade")
    how = TASKS[task] | QUIET | {"seed": seed, "eval_every": "100%"}
    run = train(data=str(scenes / data), out=out, weights=weights, **begin, **how)
    if not run.finished:
        raise SystemExit(f"stopped at step {run.step}; run the same command to go on")


def collect(out: Path) -> dict[str, dict[str, float]]:
    """The scores of all finished runs, by network, task, figure and way, and by seed."""
    scores: dict[str, dict[str, float]] = {}
    for network, task, way in itertools.product(NETWORKS, TASKS, WAYS):
        for path in sorted(out.glob(f"{network}-{task}-{way}-*/evaluation.json")):
            found = json.loads(path.read_text())
            if found["step"] == TASKS[task]["steps"]:
                for figure in FIGURES[task]:
                    row = scores.setdefault(f"{network} {task} {figure} {way}", {})
                    row[path.parent.name.rpartition("-")[2]] = float(found[figure])
    return scores


def summary(scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    """In points: mean and deviation over seeds of each way, and what pre-training gains with the seeds of both."""
    found: dict[str, Any] = {way: spread([100 * score for score in row.values()]) for way, row in scores.items()}
    for way in [way for way in scores if way.endswith(WAYS[0])]:
        scratch = scores.get(way.replace(WAYS[0], WAYS[1]), {})
        gains = [100 * (scores[way][seed] - scratch[seed]) for seed in scores[way] if seed in scratch]
        if gains:
            ends = zip(("mean", "low", "high"), interval(gains), strict=True)
            found[way]["gain"] = {name: value for name, value in ends if math.isfinite(value)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", type=Path, help="what compose_scenes.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=20.0, help="of pre-training")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--records", type=Path, default=Path("benchmarks/records"))
    options = parser.parse_args()
    weights = {n: pretrain(n, options.scenes, options.out / n, epochs=options.epochs) for n in options.networks}
    for seed, network, task in itertools.product(options.seeds, options.networks, options.tasks):
        for way, start in zip(WAYS, (str(weights[network]), "none"), strict=True):
            out = options.out / f"{network}-{task}-{way}-{seed}"
            transfer(network, task, options.scenes, out, weights=start, seed=seed)
    scores = collect(options.out)
    records.write(
        options.records,
        "dense-transfer",
        show=True,
        claim="Pre-training on unlabelled pictures of the same kind raises mIoU and AP of small networks.",
        config={
            "networks": NETWORKS,
            "pretraining": PRETRAINING | {"epochs": options.epochs},
            "tasks": TASKS,
        },
        raw=scores,
        summary=summary(scores),
    )


if __name__ == "__main__":
    main()
