"""Segmentation as a training run, and predictions of a trained one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from fastmim import config as configs
from fastmim.backbone.surgery import check_lists_blocks
from fastmim.data import sources
from fastmim.data.label_crops import load_crops
from fastmim.data.label_images import LabelledPixels, open_scenes
from fastmim.errors import RequestError, listed
from fastmim.recipes import SEGMENT_RECIPES
from fastmim.system.display import say
from fastmim.training import optim, run
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.logs import Logs
from fastmim.training.loop import Batch, Periodic
from fastmim.training.run import Task, launch
from fastmim.training.schedule import Stage
from fastmim.transfer.dense import build_trunk
from fastmim.transfer.segment.evaluation import Inference
from fastmim.transfer.segment.file import Design
from fastmim.transfer.segment.predict import Predicted, predict
from fastmim.transfer.segment.segmenter import Preparation, Segmenter
from fastmim.transfer.segment.settings import SegmentConfig
from fastmim.transfer.segment.validation import Validator
from fastmim.transfer.start import Start, find_start

_NUM_MAPS = 4


@dataclass(frozen=True)
class Result(run.Result):
    """How a segmentation run ended."""

    miou: float | None = None
    """Mean intersection over union of the final weights on the validation images; None before the end."""
    best_miou: float | None = None
    """The same of the best weights so far."""


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
    """
    if predict_images is not None:
        config = configs.build(SegmentConfig, settings)
        return predict(config, predict_images, overwrite=overwrite, dry_run=dry_run)
    result: Result = launch(Segmenting, settings, overwrite=overwrite, dry_run=dry_run)
    return result


class Segmenting(Task[SegmentConfig]):
    """A segmenter on images with label images, validated as it trains."""

    config_class = SegmentConfig
    recipes = SEGMENT_RECIPES
    model: Segmenter

    def open_data(self) -> LabelledPixels:
        config = self.config
        self.fresh_start = self._find_start() if config.range == "auto" else None
        self.scenes = open_scenes(
            config.data,
            config.labels,
            config,
            inherited=self.fresh_start.range if self.fresh_start else None,
            val_data=config.val_data,
            val_labels=config.val_labels,
            classes=config.classes,
            ignore_index=config.ignore_index,
            say=functools.partial(say, self.console),
        )
        return self.scenes.train

    def _find_start(self) -> Start:
        config = self.config
        return find_start(config.weights, backbone=config.backbone, backbone_args=config.backbone_args)

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        return {"data": sources.fingerprint(self.source), "val_data": sources.fingerprint(self.scenes.val)}

    @property
    def num_images(self) -> int:
        return len(self.scenes.train) + len(self.scenes.val)

    @property
    def faster_data(self) -> str:
        return "raise --num-workers, or shrink images and label images once"

    def sizes(self) -> tuple[tuple[int, float], ...]:
        return ((self.config.img_size, 1.0),)

    def check_resumable(self, found: Checkpoint) -> None:
        super().check_resumable(found)
        if (expected := found.manifest["classes"]) != self.scenes.classes:
            raise RequestError(
                f"data is {self.config.data} with classes {listed(self.scenes.classes)}; expected those that the run "
                f"in {self.config.out} began with, {listed(expected)}: take another --out"
            )

    def build(self, found: Checkpoint | None) -> None:
        config, device, classes = self.config, self.plan.device, self.scenes.classes
        self._check_batch()
        self.start = Start(**found.manifest["start"]) if found else self.fresh_start or self._find_start()
        trunk = build_trunk(
            config, self.start, img_size=config.img_size, depths=config.depths or _NUM_MAPS, resuming=bool(found)
        )
        if config.shard:
            check_lists_blocks(trunk.model, trunk.name, "shard")
        self.model = Segmenter(
            trunk, len(classes), head=config.head, channels=config.channels, aux_weight=config.aux_weight
        ).to(device)
        self.mean, self.std = config.mean or tuple(self.start.mean), config.std or tuple(self.start.std)
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
        self.build_optimizer(self.model)  # refuses layers that timm cannot tell apart before anything is written

    def _check_batch(self) -> None:
        plan = self.plan
        at_once = plan.batch_size // plan.stages[0].accumulation
        if self.config.head == "upernet" and at_once < 2:
            raise RequestError(
                f"{at_once} image at once is too few for the batch norms of UPerNet; expected two or more: raise "
                f"--batch-size or --micro-batch, or take --head linear"
            )

    def read(self, stage: Stage, first_step: int) -> Generator[Batch]:
        config, plan = self.config, self.plan
        return load_crops(
            self.scenes.train,
            size=stage.size,
            seed=config.seed,
            global_batch=config.batch_size,
            first_step=first_step,
            last_step=stage.stop,
            scale=config.scale,
            fill=tuple(min(255, max(0, round(255 * value))) for value in self.mean),
            accumulation=stage.accumulation,
            rank=self.world.rank,
            world_size=self.world.size,
            num_workers=plan.num_workers,
            pin_memory=plan.device.type == "cuda",
            shuffle=config.shuffle,
        )

    def blank_batch(self, num_images: int) -> Batch:
        blank = super().blank_batch(num_images)
        size = blank["images"].shape[-1]
        return blank | {"labels": torch.zeros(num_images, size, size, dtype=torch.int16, device=self.plan.device)}

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return self.preparation(batch)

    def build_optimizer(self, model: nn.Module) -> AdamW:
        assert isinstance(model, Segmenter)
        groups = model.parameter_groups(weight_decay=self.config.weight_decay, layer_decay=self.config.layer_decay)
        return optim.adamw(groups, betas=self.config.betas)

    def facts(self) -> dict[str, Any]:
        return {
            "num_images": self.plan.num_images,
            "fingerprints": self.fingerprints,
            "classes": self.scenes.classes,
            "start": dataclasses.asdict(self.start),
            "stages": [dataclasses.asdict(stage) for stage in self.plan.stages],
        }

    def periodic(self, logs: Logs) -> list[Periodic]:
        config = self.config
        self.validator = Validator(
            config=config,
            total_steps=self.plan.total_steps,
            scenes=self.scenes,
            model=self.model,
            design=self.design,
            inference=self.inference,
            about={
                "recipe": config.recipe,
                "data": config.data,
                "range": config.range,
                "mean": self.mean,
                "std": self.std,
            },
            bad_images=self.bad_images,
            say=logs.say,
        )
        every = config.eval_every
        validating = (self.plan.steps(every), self.world.on_main(self.validator))
        return [*super().periodic(logs), validating, *self.reporting(every, logs)]

    def result(self, step: int) -> Result:
        return Result(self.config.out, step, self.plan.total_steps)

    def finish(self, step: int) -> Result:
        result, validator = self.result(step), self.validator
        best = validator.best if validator.best >= 0 else None
        if not result.finished:
            return dataclasses.replace(result, best_miou=best)
        validator.save(result.weights, step)
        final = validator.last_scores(step)
        say(self.console, validator.summary(final))
        return dataclasses.replace(result, miou=final["val_miou"], best_miou=best)

    def describe(self) -> list[str]:
        config, plan, scenes, trunk = self.config, self.plan, self.scenes, self.model.trunk
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        how = f"windows {self.inference.stride} px apart" if self.inference.stride else "whole"
        lines = [
            f"data      {scenes.train.origin}: {len(scenes.train):,} images, {len(scenes.classes)} classes "
            f"({listed(scenes.classes, 5)}); {plan.steps_per_epoch} steps an epoch",
            f"validate  {scenes.val.origin}: {len(scenes.val):,} images of {config.img_size} px, {how}",
            *scenes.train.remarks,
            f"weights   {self.start.origin}",
            f"network   {trunk.name} with a head {config.head}: {millions:.1f} M parameters, {trained:.1f} M trained; "
            f"drop path {trunk.drop_path:g}, layer decay {config.layer_decay:g}",
            *plan.describe(),
            f"out       {config.out}; validated every {plan.steps(config.eval_every)} steps",
        ]
        if self.start.fresh:
            fresh = f"fresh     {listed(self.start.fresh)}: left out of pre-training, so they start untrained"
            lines.insert(lines.index(f"weights   {self.start.origin}") + 1, fresh)
        return lines
