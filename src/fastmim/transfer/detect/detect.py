"""Detection as a training run, and predictions of a trained one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from fastmim import config as configs
from fastmim.backbone.surgery import check_lists_blocks
from fastmim.data import sources
from fastmim.data.augment import normalise
from fastmim.errors import RequestError, listed
from fastmim.recipes import DETECT_RECIPES
from fastmim.system.display import say
from fastmim.training import optim, run
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.logs import Logs
from fastmim.training.loop import Batch, Periodic
from fastmim.training.run import Task, launch
from fastmim.training.schedule import Stage
from fastmim.transfer.dense import build_trunk
from fastmim.transfer.detect.coco import Scenes, open_scenes
from fastmim.transfer.detect.crops import Jitter, load_crops
from fastmim.transfer.detect.detector import UNIT, Detector
from fastmim.transfer.detect.evaluation import Inference
from fastmim.transfer.detect.file import Design
from fastmim.transfer.detect.predict import Predicted, predict
from fastmim.transfer.detect.settings import DetectConfig
from fastmim.transfer.detect.validation import Validator
from fastmim.transfer.start import Start, find_start


@dataclass(frozen=True)
class Result(run.Result):
    """How a detection run ended."""

    box_ap: float | None = None
    """COCO's average precision of the final boxes on the validation images, 0 to 1; None before the end."""
    mask_ap: float | None = None
    """The same of the masks; None without masks."""
    box_ap50: float | None = None
    """The same of the boxes at an overlap (IoU) of 0.5 alone."""


def detect(
    *, predict_images: str | None = None, overwrite: bool = False, dry_run: bool = False, **settings: Any
) -> Result | Predicted:
    """Train a network that finds objects, their boxes and masks, or find those of images with a trained one.

    Arguments, resuming and errors are those of `fastmim.pretrain`, with the fields of `DetectConfig` as settings
    (`fastmim detect --help` lists them).

    Args:
        predict_images: Do not train, but find the objects of these images (anything that `--data` takes elsewhere) with
            the detector in `weights`, and write a file in COCO's format and pictures to the new folder `out`.
        overwrite: Start from scratch; of predictions: write to a folder that exists.
        dry_run: Print what would be done, and stop.
        settings: Fields of `DetectConfig`.
    """
    if predict_images is not None:
        config = configs.build(DetectConfig, settings)
        return predict(config, predict_images, overwrite=overwrite, dry_run=dry_run)
    result: Result = launch(Detecting, settings, overwrite=overwrite, dry_run=dry_run)
    return result


class Detecting(Task[DetectConfig]):
    """A detector on images with annotations, validated as it trains."""

    config_class = DetectConfig
    recipes = DETECT_RECIPES
    model: Detector

    def open_data(self) -> Scenes:
        config = self.config
        self.fresh_start = self._find_start() if config.range == "auto" else None
        self.parts = open_scenes(
            config.data,
            config.images,
            config,
            val_data=config.val_data,
            val_images=config.val_images,
            masks=config.masks,
            max_absent=config.max_bad_share,
            inherited=self.fresh_start.range if self.fresh_start else None,
        )
        return self.parts.train

    def _find_start(self) -> Start:
        config = self.config
        return find_start(config.weights, backbone=config.backbone, backbone_args=config.backbone_args)

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        return {"data": sources.fingerprint(self.source), "val_data": sources.fingerprint(self.parts.val)}

    @property
    def num_images(self) -> int:
        return len(self.parts.train) + len(self.parts.val)

    @property
    def faster_data(self) -> str:
        return "raise --num-workers, or shrink the images and their annotations once"

    def sizes(self) -> tuple[tuple[int, float], ...]:
        return ((self.config.img_size, 1.0),)

    def check_resumable(self, found: Checkpoint) -> None:
        super().check_resumable(found)
        train, before = self.parts.train, found.manifest
        if (before["classes"], before["masks"]) != (train.classes, train.has_masks):
            masks = "masks" if before["masks"] else "boxes alone"
            raise RequestError(
                f"data is {self.config.data} with classes {listed(train.classes)}; expected those that the run in "
                f"{self.config.out} began with, {listed(before['classes'])}, and {masks}: take another --out"
            )

    def build(self, found: Checkpoint | None) -> None:
        config, device, train = self.config, self.plan.device, self.parts.train
        self.start = Start(**found.manifest["start"]) if found else self.fresh_start or self._find_start()
        side = -(-config.img_size // UNIT) * UNIT  # as `Detector` pads
        trunk = build_trunk(config, self.start, img_size=side, depths=1, resuming=bool(found))
        if config.shard:
            check_lists_blocks(trunk.model, trunk.name, "shard")
        self.model = Detector(
            trunk,
            len(train.classes),
            masks=train.has_masks,
            channels=config.channels,
            num_regions=config.num_regions,
        ).to(device)
        self.mean, self.std = config.mean or tuple(self.start.mean), config.std or tuple(self.start.std)
        self.inference = Inference(
            size=config.img_size,
            mean=torch.tensor(self.mean, device=device),
            std=torch.tensor(self.std, device=device),
            bf16=self.plan.bf16,
            num_workers=self.plan.num_workers,
        )
        self.design = Design(
            classes=train.classes,
            categories=train.categories,
            masks=train.has_masks,
            channels=config.channels,
            window=config.window,
            img_size=config.img_size,
        )
        self.build_optimizer(self.model)  # refuses layers that timm cannot tell apart before anything is written

    def read(self, stage: Stage, first_step: int) -> Generator[Batch]:
        config, plan = self.config, self.plan
        fill = tuple(min(255, max(0, round(255 * value))) for value in self.mean)
        return load_crops(
            self.parts.train,
            jitter=Jitter(size=stage.size, scale=config.scale, flip=config.flip, fill=fill),
            seed=config.seed,
            global_batch=config.batch_size,
            first_step=first_step,
            last_step=stage.stop,
            accumulation=stage.accumulation,
            rank=self.world.rank,
            world_size=self.world.size,
            num_workers=plan.num_workers,
            pin_memory=plan.device.type == "cuda",
            shuffle=config.shuffle,
        )

    def blank_batch(self, num_images: int) -> Batch:
        blank, num = super().blank_batch(num_images), 100 * num_images  # of objects: few images have more
        size, device = blank["images"].shape[-1], self.plan.device
        blank["boxes"] = torch.tensor([[0.0, 0.0, size, size]], device=device).repeat(num, 1)
        blank["labels"] = torch.zeros(num, dtype=torch.int64, device=device)
        blank["counts"] = [100] * num_images
        if self.design.masks:
            blank["masks"] = torch.ones(num, size, size, dtype=torch.uint8, device=device)
        return blank

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: batch[name] for name in ("boxes", "labels", "counts", "masks") if name in batch}
        return given | {"images": normalise(batch["images"], self.inference.mean, self.inference.std)}

    def build_optimizer(self, model: nn.Module) -> AdamW:
        assert isinstance(model, Detector)
        groups = model.parameter_groups(weight_decay=self.config.weight_decay, layer_decay=self.config.layer_decay)
        return optim.adamw(groups, betas=self.config.betas)

    def facts(self) -> dict[str, Any]:
        return {
            "num_images": self.plan.num_images,
            "fingerprints": self.fingerprints,
            "classes": self.design.classes,
            "masks": self.design.masks,
            "start": dataclasses.asdict(self.start),
            "stages": [dataclasses.asdict(stage) for stage in self.plan.stages],
        }

    def periodic(self, logs: Logs) -> list[Periodic]:
        config = self.config
        self.validator = Validator(
            config=config,
            total_steps=self.plan.total_steps,
            scenes=self.parts.val,
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
        if not result.finished:
            return result
        validator.save(result.weights, step)
        final = validator.last_scores(step)
        say(self.console, validator.summary(final))
        return dataclasses.replace(
            result, box_ap=final["val_box_ap"], mask_ap=final.get("val_mask_ap"), box_ap50=final["val_box_ap50"]
        )

    def describe(self) -> list[str]:
        config, plan, train, val = self.config, self.plan, self.parts.train, self.parts.val
        trunk = self.model.trunk
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        what = "boxes and masks" if train.has_masks else "boxes"
        lines = [
            f"data      {train.origin}: {len(train):,} images, {len(train.objects.labels):,} objects, {what}; "
            f"{len(train.classes)} classes ({listed(train.classes, 5)}); {plan.steps_per_epoch} steps an epoch",
            f"validate  {val.origin}: {len(val):,} images, {config.img_size} px at the longer side",
            *train.remarks,
            f"weights   {self.start.origin}",
            f"network   {trunk.name} with Mask R-CNN of {config.channels} channels: {millions:.1f} M parameters; "
            f"drop path {trunk.drop_path:g}, layer decay {config.layer_decay:g}",
            *plan.describe(),
            f"out       {config.out}; validated every {plan.steps(config.eval_every)} steps",
        ]
        if self.start.fresh:
            fresh = f"fresh     {listed(self.start.fresh)}: left out of pre-training, so they start untrained"
            lines.insert(lines.index(f"weights   {self.start.origin}") + 1, fresh)
        return lines
