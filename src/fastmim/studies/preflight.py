"""The preflight check of a study, before anything runs: data, points, networks, sizes; and the settings of its runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastmim import config as configs
from fastmim.data import order, sources
from fastmim.data.labelled import Labelled, limit_labels, open_labelled
from fastmim.data.settings import ImageConfig
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError
from fastmim.method import build
from fastmim.method.settings import PretrainConfig
from fastmim.studies.settings import MOST_FINETUNE_STEPS, StudyConfig
from fastmim.studies.sweep import SMALL_SIZE, Point, expand, parse_finetune_set
from fastmim.transfer.classify.finetuner import build_classifier
from fastmim.transfer.classify.settings import FinetuneConfig
from fastmim.transfer.features.settings import ProbeConfig
from fastmim.transfer.start import find_start

FINETUNE_BATCH = 128

LIGHT: dict[str, Any] = {
    "crop_scale": (0.5, 1.0),
    "randaugment": "none",
    "mixup": 0.0,
    "cutmix": 0.0,
    "reprob": 0.0,
    "lr": 4e-3,
    "warmup": "20%",
}
"""Fine-tuning of small images, whose objects the usual augmentation would destroy; the same for all points. Of 2e-3,
4e-3 and 8e-3 this learning rate was best for a small ViT, from scratch and pre-trained (`benchmarks/fashion_mnist.py`).
It needs more warm-up than the usual 5 % in runs of about a hundred steps: from scratch these were unstable.
"""

# Fine-tuning settings that the study decides, and the flags that it takes instead.
_DECIDED = {
    "weights": "--sweep",
    "backbone": "--backbone",
    "backbone_args": "--backbone-args",
    "img_size": "--finetune-size",
    "num_labels": "--labels",
    "steps": "--finetune-steps",
    "val_data": "--val-data",
    "val_share": "--val-share",
}


@dataclass(frozen=True)
class Request:
    """A study that has passed the check."""

    config: StudyConfig
    points: list[Point]
    """From scratch first, then the sweep."""
    pretrain_data: str
    num_images: int
    """Images to pre-train on."""
    sees_validation: bool
    """Whether pre-training sees the validation images, without their labels."""
    num_train: int
    """Labelled training images."""
    num_val: int
    labels: tuple[int, ...]
    """The numbers of labels to fine-tune on, ascending."""
    finetune_size: int
    finetune: dict[str, Any]
    """Settings of every fine-tuning."""

    @property
    def finetune_steps(self) -> int:
        """Steps of every fine-tuning."""
        return int(self.finetune["steps"])

    def with_finetune_steps(self, steps: int) -> Request:
        """The request with another length of fine-tuning."""
        return replace(self, finetune=self.finetune | {"steps": steps})

    def scratch(self, point: Point) -> Point:
        """The point from scratch with the same network."""
        network = (point.backbone, point.backbone_args)
        return next(p for p in self.points if p.config is None and (p.backbone, p.backbone_args) == network)

    def steps(self, point: Point, images: int) -> int:
        """Pre-training steps on so many images; 0 from scratch."""
        return max(1, images // point.config.images_per_step) if point.config else 0

    def batch(self, num_labels: int) -> int:
        """Images in a fine-tuning step."""
        return min(int(self.finetune["batch_size"]), num_labels)


def check(config: StudyConfig) -> Request:
    """Open the data and build every network, at all its sizes, on the meta device.

    Raises:
        RequestError: the study is impossible; a message about one point begins with its name.
    """
    if not config.data:
        raise RequestError("data is not given; expected labelled images: --data labelled/")
    images = ImageConfig(range=config.range)
    labelled = open_labelled(config.data, images, val_data=config.val_data, val_share=config.val_share)
    held_out = labelled.held_out
    pretrain_data = config.pretrain_data or (config.data if held_out else labelled.train.origin)
    source = sources.open_source(pretrain_data, images)
    found = expand(config, pretrain_data)
    size = config.finetune_size or max(size for point in found for size in point.sizes)
    labels = config.num_labels(len(labelled.train))
    for number in labels:
        limit_labels(labelled.train, number)
    request = Request(
        config=config,
        points=found,
        pretrain_data=pretrain_data,
        num_images=len(source),
        sees_validation=held_out and config.pretrain_data is None,
        num_train=len(labelled.train),
        num_val=len(labelled.val),
        labels=labels,
        finetune_size=size,
        finetune=_finetune(config, size),
    )
    for point in found:
        try:
            if point.config:
                order.steps_per_epoch(source, point.config.images_per_step, remedy="add --set batch_size={}")
                _build_model(point.config)
            else:
                _build_classifier(request, point, labelled)
        except RequestError as error:
            raise RequestError(f"{point.name}: {error}") from None
    return request


def _finetune(config: StudyConfig, size: int) -> dict[str, Any]:
    given = parse_finetune_set(config, FinetuneConfig)
    for key, instead in _DECIDED.items():
        if key in given:
            raise RequestError(f"finetune_set has {key}, which the study decides for all runs: use {instead}")
    common = {
        "data": config.data,
        "val_data": config.val_data,
        "val_share": config.val_share,
        "range": config.range,
        "img_size": size,
        "steps": config.finetune_steps or MOST_FINETUNE_STEPS,
        "batch_size": FINETUNE_BATCH,
        "eval_every": "100%",
        "trackers": "none",
        "report": "never",
    }
    settings = common | (LIGHT if size <= SMALL_SIZE else {}) | given
    configs.build(FinetuneConfig, settings)
    return settings


def _build_model(config: PretrainConfig) -> None:
    """Build the model on the meta device, with its teacher."""
    opened = build.open_teacher(config)
    teacher = build.load_teacher(config, opened, mean=IMAGENET_MEAN, std=IMAGENET_STD) if opened else None
    with torch.device("meta"):
        untrained = configs.build(PretrainConfig, configs.to_mapping(config), {"init": None})
        build.build_model(untrained, teacher=teacher)


def _build_classifier(request: Request, point: Point, labelled: Labelled) -> None:
    network = {"backbone": point.backbone, "backbone_args": point.backbone_args}
    config = configs.build(FinetuneConfig, request.finetune, network)
    with torch.device("meta"):
        start = find_start(config.weights, backbone=config.backbone, backbone_args=config.backbone_args)
        build_classifier(config, start, num_classes=len(labelled.classes), resuming=True)


def run_settings(
    request: Request, point: Point, seed: int, folder: Path, *, steps: int, device: str, num_workers: int
) -> dict[str, Any]:
    """The settings of all runs of a trial, by the run's name, in order.

    Args:
        steps: Pre-training steps.
    """
    where = {"device": device, "num_workers": num_workers, "seed": seed}
    network = {"backbone": point.backbone, "backbone_args": point.backbone_args}
    runs: dict[str, Any] = {}
    if point.config:
        pretraining_settings = configs.to_mapping(point.config) | where
        pretraining_settings |= {"epochs": None, "steps": steps, "out": str(folder / "pretrain")}
        pretraining_settings |= {"trackers": "none", "report": "never"}
        # Its settings hold a recipe's values already; the recipe would add its own number of epochs.
        runs["pretrain"] = pretraining_settings | {"recipe": None} | _bookkeeping(point.config, steps)
    begin: dict[str, Any] = {"weights": str(folder / "pretrain")} if point.config else {"layer_decay": 1.0}
    for number in request.labels:
        batch = {"num_labels": number, "batch_size": request.batch(number)}
        out = {"out": str(folder / f"finetune-{number}"), "save_every": max(1, request.finetune_steps // 10)}
        runs[f"finetune-{number}"] = request.finetune | network | where | begin | batch | out
    if request.config.probe != "none":
        runs["probe"] = _probing(request, point, seed, folder) | where
    return runs


def _bookkeeping(config: PretrainConfig, steps: int) -> dict[str, Any]:
    """Ten checkpoints and one picture, unless the user sets something else."""
    given = {name: getattr(config, name) for name in ("save_every", "picture_every")}
    defaults = {"save_every": PretrainConfig.save_every, "picture_every": PretrainConfig.picture_every}
    ours = {"save_every": max(1, steps // 10), "picture_every": "100%"}
    return {name: ours[name] if given[name] == defaults[name] else given[name] for name in ours}


def _probing(request: Request, point: Point, seed: int, folder: Path) -> dict[str, Any]:
    """The settings of a probe: features at the common size, the most labels."""
    config = request.config
    network = {"backbone": point.backbone, "backbone_args": point.backbone_args}
    settings = {
        "weights": str(folder / "pretrain") if point.config else "none",
        "data": config.data,
        "val_data": config.val_data,
        "val_share": config.val_share,
        "range": config.range,
        "img_size": request.finetune_size,
        "method": config.probe,
        "num_labels": max(request.labels),
        "out": str(folder / "probe-report.json"),
    }
    configs.build(ProbeConfig, settings, network)
    return settings | network
