"""What pre-training on unlabelled pictures is worth for segmentation: small networks against the same from scratch.

    python benchmarks/compose_scenes.py scenes/
    python benchmarks/segment_transfer.py scenes/ --out runs/segment-transfer [--seeds 0 1 2]

A small ViT and a small Swin are pre-trained by `fastmim.pretrain` on `scenes/unlabelled`, once each, then trained by
`fastmim.segment` on `scenes/ade` from these weights and from nothing, with the same settings and several seeds; each
also with a linear head on frozen features. Each part is a run of its own, so the same command goes on after an
interruption. The record has the mIoU of all runs on pictures whose cut-outs and photographs are in no other part.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import fastmim
from fastmim.bench import records

NETWORKS: dict[str, dict[str, Any]] = {
    "vit": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": {"patch_size": 8, "embed_dim": 128, "depth": 8, "num_heads": 4},
    },
    "swin": {
        "backbone": "swin_tiny_patch4_window7_224",
        "backbone_args": {"embed_dim": 48, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16), "window_size": 4},
    },
}
SIZE = 128
QUIET = {"trackers": "none", "report": "never", "num_workers": 1}


def pretrain(network: str, scenes: Path, out: Path, *, epochs: float) -> Path:
    """Pre-train a network on the unlabelled pictures, or go on with it."""
    settings = {"img_size": SIZE, "epochs": epochs, "batch_size": 64, "lr": 2.4e-3, "picture_every": "never"}
    run = fastmim.pretrain(data=str(scenes / "unlabelled"), out=out, **NETWORKS[network], **settings, **QUIET)
    if not run.finished:
        raise SystemExit(f"stopped at step {run.step}; run the same command to go on")
    return run.out


def segment(network: str, scenes: Path, out: Path, *, weights: str, head: str, seed: int, steps: int) -> float:
    """Train a segmenter, or go on with it; its mIoU on the validation pictures."""
    begin = NETWORKS[network] if weights == "none" else {"weights": weights}
    rate = {"upernet": 5e-4, "linear": 1e-3}[head]
    settings = {"img_size": SIZE, "batch_size": 16, "lr": rate * 16, "steps": steps, "channels": 64, "seed": seed}
    data = {"data": str(scenes / "ade"), "eval_every": "50%", "num_pictures": 2, "head": head}
    run = fastmim.segment(out=out, **begin, **settings, **data, **QUIET)
    if not run.finished:
        raise SystemExit(f"stopped at step {run.step}; run the same command to go on")
    return float(json.loads((out / "evaluation.json").read_text())["val_miou"])


def summary(scores: dict[str, list[float]]) -> dict[str, Any]:
    """The mean and the standard deviation over seeds of each way, and the gain of pre-training, paired by seed."""
    found: dict[str, Any] = {
        way: {"miou": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
        for way, values in scores.items()
    }
    for way in [way for way in scores if way.endswith("pre-trained")]:
        scratch = scores[way.replace("pre-trained", "scratch")]
        gains = [a - b for a, b in zip(scores[way], scratch, strict=True)]
        found[way]["gain"] = {"mean": statistics.mean(gains), "least": min(gains), "most": max(gains)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", type=Path, help="what compose_scenes.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=40.0, help="of pre-training")
    parser.add_argument("--steps", type=int, default=1500, help="of segmentation")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--records", type=Path, default=Path("benchmarks/records"))
    options = parser.parse_args()
    scores: dict[str, list[float]] = {}
    for network in options.networks:
        weights = pretrain(network, options.scenes, options.out / network, epochs=options.epochs)
        for seed in options.seeds:
            for head in ("upernet", "linear"):
                for way, start in (("pre-trained", str(weights)), ("scratch", "none")):
                    name = f"{network} {head} {way}"
                    out = options.out / f"{name.replace(' ', '-')}-{seed}"
                    how = {"weights": start, "head": head, "seed": seed, "steps": options.steps}
                    scores.setdefault(name, []).append(segment(network, options.scenes, out, **how))
                    print(f"{name}, seed {seed}: mIoU {scores[name][-1]:.1%}", flush=True)
    records.write(
        options.records,
        "segment-transfer",
        show=True,
        claim="Pre-training on unlabelled pictures of the same kind raises the mIoU of small networks.",
        config={
            "networks": {name: NETWORKS[name] for name in options.networks},
            "seeds": options.seeds,
            "epochs": options.epochs,
            "steps": options.steps,
            "img_size": SIZE,
        },
        raw=scores,
        summary=summary(scores),
    )


if __name__ == "__main__":
    main()
