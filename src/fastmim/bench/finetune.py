"""Fine-tuning at 224 px: the training step, and the augmentation on the processor, against the forms of timm.

MAE's fine-tuning uses them so: `create_transform` on Pillow's images, `Mixup` on the batch,
and a step as in `references`. The augmentation is that of `fastmim finetune` by default, with the recipes' crops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor
from torch.utils.data import DataLoader

from fastmim.backbone import Classifier
from fastmim.bench import flops
from fastmim.bench.data_path import Pictures
from fastmim.bench.references import LEARNING_RATE, conventional_step, plain_layers
from fastmim.bench.steps import Form, forms, loop_step, reference, summarise, synthetic_batch
from fastmim.bench.timing import Times, ratios, take_turns
from fastmim.data import augment
from fastmim.data.loader import load
from fastmim.data.rand_augment import RandAugment, keep_a_bit
from fastmim.data.sources import Source
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.training import optim
from fastmim.transfer.classify.finetuner import Finetuner, Preparation
from fastmim.transfer.classify.settings import FinetuneConfig

SIZE, NUM_CLASSES = 224, 1000
_CROP_SCALE = (0.08, 1.0)  # timm's, and that of the recipes
TIMM, OURS = "timm on Pillow", "fastmim"


def measure_step(
    backbone: str, *, device: str, batch_size: int, rounds: int, peaks: dict[str, float], precision: str
) -> tuple[dict[str, Any], Times]:
    """Time the forms of the step in turns: flip, normalise, erase, mix, forward and backward pass, and AdamW.

    Args:
        backbone: A timm model.
        device: Where it is trained.
        batch_size: Images in a step, an even number.
        rounds: Timed steps of each form.
        peaks: `flops.matmul_tflops` by precision.
        precision: As in `steps.forms`.

    Returns:
        The summary, as of `steps.measure`, and the times.
    """
    torch.compiler.reset()
    torch.manual_seed(0)
    classifier = Classifier(backbone, num_classes=NUM_CLASSES, img_size=SIZE).to(device).train()
    images = torch.zeros(1, 3, SIZE, SIZE, device=device)
    gflop = flops.STEP * flops.count(lambda: classifier(images)) / 1e9
    batch = synthetic_batch(batch_size, SIZE, device)
    batch["labels"] = torch.arange(batch_size, device=device) % NUM_CLASSES
    ours = forms(device, precision)
    compared = reference(ours[-1], device)
    sides: dict[str, Callable[[], Any]] = {f"plain {compared}": plain_step(plain_layers(classifier), batch, compared)}
    sides |= {form.name: fastmim_step(classifier, batch, form) for form in ours}
    times = take_turns(sides, rounds=rounds, device=device, warm_up=1 if device == "cpu" else 3)
    return summarise(sides, times, device=device, batch_size=batch_size, gflop=gflop, peaks=peaks), times


def fastmim_step(classifier: Classifier, batch: dict[str, Tensor], form: Form) -> Callable[[], None]:
    """A step of `fastmim finetune` on uint8 "images", "keys" and "labels", which updates the classifier in place."""
    groups = _parameter_groups(classifier)
    optimizer = optim.adamw(groups, betas=FinetuneConfig.betas)
    return loop_step(Finetuner(classifier), preparation(str(batch["images"].device)), optimizer, batch, form)


def plain_step(classifier: Classifier, batch: dict[str, Tensor], precision: str) -> Callable[[], float]:
    """A conventional step on the same batch; `classifier` is from `references.plain_layers`."""
    device = batch["images"].device
    mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    erase = RandomErasing(probability=FinetuneConfig.reprob, mode="pixel", device=str(device))
    mix, criterion = _timm_mixup(), SoftTargetCrossEntropy()
    groups = [group | {"lr": LEARNING_RATE * group.get("lr_scale", 1.0)} for group in _parameter_groups(classifier)]
    optimizer = torch.optim.AdamW(groups, betas=FinetuneConfig.betas)

    def forward() -> Tensor:
        images = erase(augment.prepare(batch, mean, std)["images"])
        images, targets = mix(images, batch["labels"])
        loss: Tensor = criterion(classifier(images), targets)
        return loss

    return conventional_step(classifier, forward, optimizer, precision, device)


def measure_augmentation(source: Source, *, rounds: int, batch: int) -> tuple[dict[str, Any], Times]:
    """Time a pass over a folder of images in turns: decode, crop, RandAugment, flip, normalise, erase and mix.

    Args:
        source: A folder.
        rounds: Timed passes.
        batch: Images in a batch, an even number.

    Returns:
        The summary, and the times.
    """
    sides = {TIMM: partial(augment_plainly, source, batch), OURS: partial(augment_batches, source, batch)}
    times = take_turns(sides, rounds=rounds)
    rates = times.rates(len(source) // batch * batch)
    found = {name: rates[name] | {"times_faster": ratios(times.seconds, baseline=TIMM, side=name)} for name in sides}
    return {"fastmim": OURS, "times_faster": found[OURS]["times_faster"], "forms": found}, times


def augment_plainly(source: Source, batch: int) -> None:
    """Make one shuffled pass with timm's transforms on Pillow's images and timm's Mixup."""
    transform = create_transform(
        SIZE,
        is_training=True,
        color_jitter=None,
        auto_augment=FinetuneConfig.randaugment,
        interpolation="bicubic",
        re_prob=FinetuneConfig.reprob,
        re_mode="pixel",
        scale=_CROP_SCALE,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    keep_a_bit(next(step for step in transform.transforms if hasattr(step, "ops")))
    mix, labels = _timm_mixup(), torch.arange(batch) % NUM_CLASSES
    for images in DataLoader(Pictures(source, transform), batch_size=batch, shuffle=True, drop_last=True):
        mix(images, labels)


def augment_batches(source: Source, batch: int) -> None:
    """Make one shuffled pass with fastmim's loader and what `fastmim finetune` does to a batch."""
    transform = RandAugment(FinetuneConfig.randaugment, fill=IMAGENET_MEAN)
    prepare, labels = preparation("cpu"), torch.arange(batch) % NUM_CLASSES
    for found in load(
        source,
        size=SIZE,
        seed=0,
        global_batch=batch,
        first_step=0,
        last_step=len(source) // batch,
        crop_scale=_CROP_SCALE,
        transform=transform,
    ):
        prepare(found | {"labels": labels})


def preparation(device: str) -> Preparation:
    """The device's half of the augmentation, as `fastmim finetune` has it by default."""
    return Preparation.of(FinetuneConfig(), NUM_CLASSES, mean=IMAGENET_MEAN, std=IMAGENET_STD, device=device)


def _timm_mixup() -> Mixup:
    return Mixup(
        mixup_alpha=FinetuneConfig.mixup,
        cutmix_alpha=FinetuneConfig.cutmix,
        label_smoothing=FinetuneConfig.smoothing,
        num_classes=NUM_CLASSES,
    )


def _parameter_groups(classifier: Classifier) -> list[dict[str, Any]]:
    decays = {"weight_decay": FinetuneConfig.weight_decay, "layer_decay": FinetuneConfig.layer_decay}
    return classifier.parameter_groups(**decays)
