"""The gain of pre-training with few labels: Fashion-MNIST, fine-tuned on 600 and 6,000 labels, against from scratch.

    OMP_NUM_THREADS=1 python benchmarks/fashion_mnist.py
    OMP_NUM_THREADS=1 python benchmarks/fashion_mnist.py --targets hog pixels --labels 600 --record fashion-mnist-pixels

A ViT (28 px, patch 4, width 96, depth 4) is pre-trained on the 60,000 training images without their labels, then
fine-tuned on some of them with labels, chosen by a hash, the same number of each class. The untrained network has
the same labels, steps, augmentation and peak learning rate; each has its usual layer decay, none from scratch.
With `--longer` both are fine-tuned once more, and for so long that the network from scratch sees as many images as the
other one sees in pre-training and 400 steps of fine-tuning.
That learning rate, 4e-3 per 256 images, was the best of 2e-3, 4e-3 and 8e-3 for both (600 labels, seed 0, 400 steps;
records fashion-mnist-lr-2e-3 and fashion-mnist-lr-8e-3); none was sought for longer training. The 10,000
test images are evaluated once, after the last step.
The same command resumes after an interruption and does not repeat finished runs.
Needs the data (Debian: dataset-fashion-mnist).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

import fastmim
from fastmim.bench import records, timing
from fastmim.studies.preflight import LIGHT
from fastmim.studies.results import spread

DATA = "torchvision://FashionMNIST"
NETWORK: dict[str, Any] = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
COMMON: dict[str, Any] = {"img_size": 28, "trackers": "none", "log_every": 50}
AUGMENTATION = {name: value for name, value in LIGHT.items() if name not in ("lr", "warmup")}
SCRATCH, LONGER = "scratch", ", longer"
PRETRAINING_BATCH = 256


def pretrain(target: str, seed: int, options: argparse.Namespace) -> Path:
    """Pre-train without labels and return the run directory."""
    out = options.runs / f"pretrain-{target}-{options.steps}-{seed}"
    fastmim.pretrain(
        **COMMON,
        data=f"{DATA}?split=train",
        backbone="vit_tiny_patch16_224",
        backbone_args=NETWORK,
        target=target,
        steps=options.steps,
        batch_size=PRETRAINING_BATCH,
        lr=options.pretrain_lr,
        seed=seed,
        device=options.device,
        num_workers=options.num_workers,
        out=out,
    )
    return out


def finetune(start: str, num_labels: int, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train a classifier from pre-trained weights or from scratch, and return its accuracy on the test images."""
    name, steps = start, options.finetune_steps
    weights: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "backbone_args": NETWORK}
    batch = min(options.batch_size, num_labels)
    if start.endswith(LONGER):
        name, steps = start.removesuffix(LONGER), steps + options.steps * PRETRAINING_BATCH // batch
    layer_decay = 1.0 if name == SCRATCH else options.layer_decay
    if name != SCRATCH:
        weights |= {"weights": str(pretrain(name, seed, options))}
        name = f"{name}-{options.steps}"
    result = fastmim.finetune(
        **COMMON,
        **AUGMENTATION,
        **weights,
        data=DATA,
        num_labels=num_labels,
        steps=steps,
        batch_size=batch,
        lr=options.lr,
        layer_decay=layer_decay,
        eval_every="100%",
        seed=seed,
        device=options.device,
        num_workers=options.num_workers,
        out=options.runs / f"finetune-{name}-{num_labels}-{steps}-{seed}",
    )
    assert result.top1 is not None, "interrupted: run the same command to resume"
    return {"top1": result.top1}


def summarise(raw: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Accuracy in % (mean, deviation and every seed), and gains over scratch, paired by seed.

    "gain" is over fine-tuning of the same length, "gain over as many images" over as many as with pre-training.
    """
    summary: dict[str, Any] = {}
    for num_labels, starts in raw.items():
        found = {start: [100 * run["top1"] for run in seeds] for start, seeds in starts.items()}
        rows = {start: spread(top1) for start, top1 in found.items()}
        for start, top1 in found.items():
            if start.startswith(SCRATCH):
                continue
            longer = SCRATCH + LONGER
            bases = {"gain": longer if start.endswith(LONGER) else SCRATCH}
            if longer in found and not start.endswith(LONGER):
                bases["gain over as many images"] = longer
            for key, base in bases.items():
                gains = [a - b for a, b in zip(top1, found[base], strict=True)]
                rows[start][key] = timing.spread(gains) | {"mean": statistics.mean(gains)}
        summary[f"{num_labels} labels"] = rows
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="pre-training steps of 256 images")
    parser.add_argument("--finetune-steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=128, help="images in a fine-tuning step")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, nargs="+", default=[600, 6000])
    parser.add_argument("--targets", nargs="+", choices=["hog", "pixels"], default=["hog"])
    parser.add_argument("--longer", action="store_true", help="fine-tune on as many images more as pre-training sees")
    parser.add_argument("--pretrain-lr", type=float, default=2e-3, help="learning rate, per 256 images")
    parser.add_argument("--lr", type=float, default=4e-3, help="learning rate of fine-tuning, per 256 images")
    parser.add_argument("--layer-decay", type=float, default=0.75, help="after pre-training")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion-mnist"), help="directory of the runs")
    parser.add_argument("--record", default="fashion-mnist", help="name of the record")
    parser.add_argument("--no-record", action="store_true", help="print the summary only")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)

    raw: dict[str, dict[str, list[dict[str, float]]]] = {}
    starts = [SCRATCH, *options.targets]
    starts += [start + LONGER for start in starts if options.longer]
    for num_labels in options.labels:
        raw[str(num_labels)] = {
            start: [finetune(start, num_labels, seed, options) for seed in range(options.seeds)] for start in starts
        }
    summary = summarise(raw)
    if options.no_record:
        print(summary)
        return
    records.write(
        Path(__file__).parent / "records",
        options.record,
        show=True,
        claim="Points of top-1 that pre-training on the unlabelled images adds with few labels.",
        config={k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        | {"network": NETWORK, "augmentation": AUGMENTATION},
        raw=raw,
        summary=summary,
        device="cuda" if options.device == "auto" and torch.cuda.is_available() else options.device,
    )


if __name__ == "__main__":
    main()
