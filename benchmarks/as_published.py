"""Whether two choices of the published code matter: its head in fine-tuning and its start of linear layers.

    OMP_NUM_THREADS=1 python benchmarks/as_published.py

On Fashion-MNIST, with the network of `fashion_mnist.py` and three seeds, as top-1 on the 10,000 test images:

- the head of MAE's and FastMIM's fine-tuning (a new norm after the mean of the tokens, deviation 2e-5), which is ours,
  against the former one (the mean of the tokens after the pre-trained norm, deviation 0.02), on the same pre-trained
  weights. The former head exists here only: two names in `backbone/classifier.py` are replaced while it is built.
- linear layers that start Xavier-uniform in pre-training, which is the default, against `--linear-init timm`.

The runs are short, so that the whole takes about half an hour on a core: differences show, final accuracies do not.
The same command resumes after an interruption and does not repeat finished runs.
Needs the data (Debian: dataset-fashion-mnist).
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import fastmim
from fashion_mnist import AUGMENTATION, COMMON, DATA, NETWORK
from fastmim.backbone import classifier
from fastmim.bench import records
from fastmim.studies.differences import interval
from fastmim.studies.results import spread

WAYS: dict[str, tuple[str, str]] = {
    "as published": ("xavier", "published"),
    "former head": ("xavier", "former"),
    "timm's linear layers": ("timm", "published"),
}
"""How linear layers start in pre-training, and the head of fine-tuning."""


@contextlib.contextmanager
def head(which: str) -> Iterator[None]:
    """Build classifiers with the published head or with the former one."""
    with contextlib.ExitStack() as stack:
        if which == "former":
            former = {"global_pool": "avg", "fc_norm": False}
            stack.enter_context(mock.patch.object(classifier, "_mean_pooling", return_value=former))
            stack.enter_context(mock.patch.object(classifier, "_HEAD_STD", 0.02))
        yield


def pretrain(linear_init: str, seed: int, options: argparse.Namespace) -> Path:
    """Pre-train without labels and return the run directory."""
    out: Path = options.runs / f"pretrain-{linear_init}-{options.steps}-{seed}"
    fastmim.pretrain(
        **COMMON,
        data=f"{DATA}?split=train",
        backbone="vit_tiny_patch16_224",
        backbone_args=NETWORK,
        linear_init=linear_init,
        steps=options.steps,
        batch_size=128,
        lr=2e-3,
        seed=seed,
        device=options.device,
        num_workers=0,
        picture_every="never",
        out=out,
    )
    return out


def top1(way: str, num_labels: int, seed: int, options: argparse.Namespace) -> float:
    """Fine-tune and return the accuracy in %."""
    linear_init, which = WAYS[way]
    weights = pretrain(linear_init, seed, options)
    with head(which):
        result = fastmim.finetune(
            **COMMON,
            **AUGMENTATION,
            backbone="vit_tiny_patch16_224",
            backbone_args=NETWORK,
            weights=str(weights),
            data=DATA,
            num_labels=num_labels,
            steps=options.finetune_steps,
            batch_size=128,
            lr=4e-3,
            layer_decay=0.75,
            eval_every="100%",
            seed=seed,
            device=options.device,
            num_workers=0,
            out=options.runs / f"finetune-{linear_init}-{which}-{num_labels}-{options.finetune_steps}-{seed}",
        )
    assert result.top1 is not None, "interrupted: run the same command to resume"
    return 100 * result.top1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="pre-training steps of 128 images")
    parser.add_argument("--finetune-steps", type=int, default=150, help="steps of 128 images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, nargs="+", default=[600, 6000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs/as-published"), help="directory of the runs")
    parser.add_argument("--no-record", action="store_true", help="print the summary only")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)

    raw: dict[str, dict[str, list[float]]] = {str(number): {way: [] for way in WAYS} for number in options.labels}
    for seed in range(options.seeds):
        for number in options.labels:
            for way in WAYS:
                raw[str(number)][way].append(top1(way, number, seed, options))
    summary: dict[str, Any] = {}
    for number, found in raw.items():
        rows = {way: spread(values) for way, values in found.items()}
        for way in list(WAYS)[1:]:
            differences = [a - b for a, b in zip(found["as published"], found[way], strict=True)]
            rows[way]["as published minus this"] = dict(
                zip(("mean", "low", "high"), interval(differences), strict=True)
            )
        summary[f"{number} labels"] = rows
    if options.no_record:
        print(summary)
        return
    records.write(
        Path(__file__).parent / "records",
        "as-published",
        show=True,
        claim="Points of top-1 that the published head and the published start of linear layers gain over the former "
        "head and timm's start, with 95 % confidence intervals over seeds.",
        config={key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        | {"network": NETWORK, "augmentation": AUGMENTATION, "ways": WAYS},
        raw=raw,
        summary=summary,
        device=options.device,
    )


if __name__ == "__main__":
    main()
