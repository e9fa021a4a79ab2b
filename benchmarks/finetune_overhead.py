"""The cost of `fastmim finetune`'s loop over a bare fine-tuning loop with the same network, data and optimiser.

    OMP_NUM_THREADS=1 python benchmarks/finetune_overhead.py

As `loop_overhead.py`, for a step that flips, normalises and mixes, and AdamW with a learning rate for each block.
"""

from __future__ import annotations

import torch

import loop_overhead
from fastmim.backbone import Classifier
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.training import optim
from fastmim.transfer.classify.finetuner import Finetuner, Preparation
from fastmim.transfer.classify.settings import FinetuneConfig

NUM_CLASSES = 100


def main() -> None:
    options = loop_overhead.parse(__doc__, steps=10, batch_size=16, img_size=224)
    prepare = Preparation.of(FinetuneConfig(), NUM_CLASSES, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    loop_overhead.compare(
        "finetune-overhead",
        "The fine-tuning loop costs at most 5 % more than a bare loop per step.",
        lambda: Finetuner(Classifier(options.backbone, num_classes=NUM_CLASSES, img_size=options.img_size)),
        prepare=prepare,
        build=build,
        batch=loop_overhead.noise(options) | {"labels": torch.randint(0, NUM_CLASSES, (options.batch_size,))},
        options=options,
    )


def build(model: torch.nn.Module) -> torch.optim.AdamW:
    assert isinstance(model, Finetuner)
    groups = model.classifier.parameter_groups(weight_decay=0.05, layer_decay=0.75)
    return optim.adamw(groups, betas=(0.9, 0.999))


if __name__ == "__main__":
    main()
