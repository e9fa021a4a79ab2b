"""Segmentation as a training run, and predictions of a trained one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmim import config as configs
from fastmim.config import takes
from fastmim.data.label_crops import load_crops
from fastmim.data.label_images import LabelledPixels, open_scenes
from fastmim.errors import RequestError, listed
from fastmim.published import SEGMENT_RECIPES
from fastmim.system.display import say
from fastmim.training.logs import Logs
from fastmim.training.loop import Batch
from fastmim.training.result import Result as RunResult
from fastmim.training.run import launch
from fastmim.training.schedule import Stage
from fastmim.transfer.dense import build_trunk
from fastmim.transfer.segment.evaluation import Inference
from fastmim.transfer.segment.file import Design
from fastmim.transfer.segment.predict import Predicted, predict
from fastmim.transfer.segment.segmenter import Preparation, Segmenter
from fastmim.transfer.segment.settings import SegmentConfig
from fastmim.transfer.segment.validation import SegmenterValidator
from fastmim.transfer.supervised import Supervised

_NUM_MAPS = 4


@dataclass(frozen=True)
class Result(RunResult):
    """How a segmentation run ended."""

    miou: float | None = None
    """Mean intersection over union of the final weights on the validation images; None before the end."""
    best_miou: float | None = None
    """The same of the best weights so far."""


@takes(SegmentConfig)
def segment(
    *, predict_images: str | None = None, overwrite: bool = False, dry_run: bool = False, **settings: Any
) -> Result | Predicted:
    """Train a network that gives a class to each pixel, or segment images with a trained one.

    Arguments, resuming and errors are those of `fastmim.pretrain`, with the fields of `SegmentConfig` as settings
    (`fastmim segment --help` lists them).

    Args:
        predict_images: Do not train, but segment these images (anything that `--data` takes elsewhere) with the
            segmenter in `weights`, and write label images and pictures to the new folder `out`.
        overwrite: Start from scratch; of predictions: write to a folder that exists.
        dry_run: Print what would be done, and stop.
        settings: Fields of `SegmentConfig`.

    Example:
        >>> segmented = fastmim.segment(weights="runs/photos", data="scenes/", out="runs/scenes")
        >>> segmented = fastmim.segment(weights="runs/scenes", predict_images="photos/", out="labels/")
    """
    if predict_images is not None:
        config = configs.build(SegmentConfig, settings)
        return predict(config, predict_images, overwrite=overwrite, dry_run=dry_run)
    result: Result = launch(Segmenting, settings, overwrite=overwrite, dry_run=dry_run)
    return result


class Segmenting(Supervised[SegmentConfig]):
    """A segmenter on images with label images, validated as it trains."""

    config_class = SegmentConfig
    recipes = SEGMENT_RECIPES
    model: Segmenter

    def open_data(self) -> LabelledPixels:
        config = self.config
        self.scenes = open_scenes(
            config.data,
            config.labels,
            config,
            inherited=self.inherited_range,
            val_data=config.val_data,
            val_labels=config.val_labels,
            classes=config.classes,
            ignore_index=config.ignore_index,
            say=functools.partial(say, self.console),
        )
        return self.scenes.train

    @property
    def val(self) -> LabelledPixels:
        return self.scenes.val

    @property
    def classes(self) -> list[str]:
        return self.scenes.classes

    @property
    def eval_steps(self) -> int:
        return self.plan.steps(self.config.eval_every)

    @property
    def faster_data(self) -> str:
        return "raise --num-workers, or shrink images and label images once"

    def build_model(self, *, resuming: bool) -> Segmenter:
        config, device, classes = self.config, self.plan.device, self.classes
        self._check_batch()
        trunk = build_trunk(
            config, self.start, img_size=config.img_size, depths=config.depths or _NUM_MAPS, resuming=resuming
        )
        self.check_shards(trunk.model, trunk.name)
        model = Segmenter(
            trunk, len(classes), head=config.head, channels=config.channels, aux_weight=config.aux_weight
        ).to(device)
        mean, std = torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)
        self.preparation = Preparation(mean=mean, std=std, flip=config.flip, jitter=config.jitter)
        stride = config.test_stride or max(1, config.img_size * 2 // 3)
        self.inference = Inference(
            size=config.img_size,
            stride=stride if config.test == "slide" else None,
            mean=mean,
            std=std,
            bf16=self.plan.bf16,
            num_workers=self.plan.num_workers,
        )
        self.design = Design(
            classes=classes,
            first=int(self.scenes.train.ignore_index == 0),
            head=config.head,
            channels=config.channels,
            aux_weight=config.aux_weight,
            depths=list(config.depths or ()) or _NUM_MAPS,
            window=config.window,
            img_size=config.img_size,
            test=config.test,
            test_stride=stride,
        )
        if config.test == "whole" and not trunk.takes_any_size:
            raise RequestError(
                f"test is 'whole', and {trunk.name} takes images of one size only; expected slide: drop --test"
            )
        return model

    def _check_batch(self) -> None:
        plan = self.plan
        at_once = plan.batch_size // plan.stages[0].accumulation
        if self.config.head == "upernet" and at_once < 2:
            raise RequestError(
                f"{at_once} image at once is too few for the batch norms of UPerNet; expected two or more: raise "
                f"--batch-size or --micro-batch, or take --head linear"
            )

    def read(self, stage: Stage, first_step: int) -> Generator[Batch]:
        return load_crops(
            self.scenes.train,
            size=stage.size,
            scale=self.config.scale,
            fill=self.fill,
            **self.loading(stage, first_step),
        )

    def blank_batch(self, num_images: int) -> Batch:
        blank = super().blank_batch(num_images)
        size = blank["images"].shape[-1]
        return blank | {"labels": torch.zeros(num_images, size, size, dtype=torch.int16, device=self.plan.device)}

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.preparation(batch)

    def build_validator(self, logs: Logs) -> SegmenterValidator:
        return SegmenterValidator(
            metric="val_miou",
            **self.validation(logs),
            scenes=self.val,
            num_pictures=self.config.num_pictures,
            model=self.model,
            design=self.design,
            inference=self.inference,
        )

    def result(self, step: int) -> Result:
        return Result(self.config.out, step, self.plan.total_steps)

    def finish(self, step: int) -> Result:
        result, validator = self.result(step), self.validator
        best = validator.best if validator.best >= 0 else None
        if not result.finished:
            return dataclasses.replace(result, best_miou=best)
        final = self.final_scores(step)
        return dataclasses.replace(result, miou=final["val_miou"], best_miou=best)

    def describe(self) -> list[str]:
        config, plan, scenes, trunk = self.config, self.plan, self.scenes, self.model.trunk
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        how = f"windows {self.inference.stride} px apart" if self.inference.stride else "whole"
        return [
            f"data      {scenes.train.origin}: {len(scenes.train):,} images, {len(scenes.classes)} classes "
            f"({listed(scenes.classes, 5)}); {plan.steps_per_epoch} steps an epoch",
            f"validate  {scenes.val.origin}: {len(scenes.val):,} images of {config.img_size} px, {how}",
            *scenes.train.remarks,
            *self.start.describe(),
            f"network   {trunk.name} with a head {config.head}: {millions:.1f} M parameters, {trained:.1f} M trained; "
            f"drop path {trunk.drop_path:g}, layer decay {config.layer_decay:g}",
            *plan.describe(),
            f"out       {config.out}; validated every {self.eval_steps} steps",
        ]
