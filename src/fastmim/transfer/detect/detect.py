"""Detection as a training run, and predictions of a trained one."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastmim import config as configs
from fastmim.config import takes
from fastmim.data.augment import normalise
from fastmim.errors import RequestError, listed
from fastmim.published import DETECT_RECIPES
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.logs import Logs
from fastmim.training.loop import Batch
from fastmim.training.result import Result as RunResult
from fastmim.training.run import launch
from fastmim.training.schedule import Stage
from fastmim.transfer.dense import build_trunk
from fastmim.transfer.detect.coco import Scenes, open_scenes
from fastmim.transfer.detect.crops import Jitter, load_crops
from fastmim.transfer.detect.detector import UNIT, Detector
from fastmim.transfer.detect.evaluation import Inference
from fastmim.transfer.detect.file import Design
from fastmim.transfer.detect.predict import Predicted, predict
from fastmim.transfer.detect.settings import DetectConfig
from fastmim.transfer.detect.validation import DetectorValidator
from fastmim.transfer.supervised import Supervised


@dataclass(frozen=True)
class Result(RunResult):
    """How a detection run ended."""

    box_ap: float | None = None
    """COCO's average precision of the final boxes on the validation images, 0 to 1; None before the end."""
    mask_ap: float | None = None
    """The same of the masks; None without masks."""
    box_ap50: float | None = None
    """The same of the boxes at an overlap (IoU) of 0.5 alone."""


@takes(DetectConfig)
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

    Example:
        >>> detected = fastmim.detect(weights="runs/photos", data="coco/", out="runs/coco")
    """
    if predict_images is not None:
        config = configs.build(DetectConfig, settings)
        return predict(config, predict_images, overwrite=overwrite, dry_run=dry_run)
    result: Result = launch(Detecting, settings, overwrite=overwrite, dry_run=dry_run)
    return result


class Detecting(Supervised[DetectConfig]):
    """A detector on images with annotations, validated as it trains."""

    config_class = DetectConfig
    recipes = DETECT_RECIPES
    model: Detector

    def open_data(self) -> Scenes:
        config = self.config
        self.parts = open_scenes(
            config.data,
            config.images,
            config,
            val_data=config.val_data,
            val_images=config.val_images,
            masks=config.masks,
            max_absent=config.max_bad_share,
            inherited=self.inherited_range,
        )
        return self.parts.train

    @property
    def val(self) -> Scenes:
        return self.parts.val

    @property
    def classes(self) -> list[str]:
        return self.parts.train.classes

    @property
    def eval_steps(self) -> int:
        return self.plan.steps(self.config.eval_every)

    @property
    def faster_data(self) -> str:
        return "raise --num-workers, or shrink the images and their annotations once"

    def check_resumable(self, found: Checkpoint) -> None:
        super().check_resumable(found)
        if (before := found.manifest["masks"]) != self.parts.train.has_masks:
            now, then = ("boxes alone", "masks") if before else ("masks", "boxes alone")
            raise RequestError(
                f"data is {self.config.data} with {now}; the run in {self.config.out} began with {then}: give it the "
                f"same annotations, or take another --out"
            )

    def build_model(self, *, resuming: bool) -> Detector:
        config, device, train = self.config, self.plan.device, self.parts.train
        if config.copy_paste:
            self._check_pasting()
        side = -(-config.img_size // UNIT) * UNIT  # as `Detector` pads
        trunk = build_trunk(config, self.start, img_size=side, depths=1, resuming=resuming)
        self.check_shards(trunk.model, trunk.name)
        model = Detector(
            trunk,
            len(train.classes),
            masks=train.has_masks,
            channels=config.channels,
            num_regions=config.num_regions,
        ).to(device)
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
        return model

    def _check_pasting(self) -> None:
        if not self.parts.train.has_masks:
            raise RequestError(
                f"copy_paste is True, and {self.parts.train.origin} has boxes alone; expected outlines of the objects: "
                f"add --no-copy-paste"
            )
        if self.plan.share // self.plan.stages[0].accumulation < 2:
            raise RequestError(
                "copy_paste is True, and one image is read at once; expected two or more, as objects of one are pasted "
                "on another: raise --batch-size or --micro-batch, or add --no-copy-paste"
            )

    def read(self, stage: Stage, first_step: int) -> Generator[Batch]:
        config = self.config
        return load_crops(
            self.parts.train,
            jitter=Jitter(size=stage.size, scale=config.scale, flip=config.flip, fill=self.fill),
            paste=config.copy_paste,
            **self.loading(stage, first_step),
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

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"masks": self.design.masks}

    def build_validator(self, logs: Logs) -> DetectorValidator:
        return DetectorValidator(
            metric="val_mask_ap" if self.design.masks else "val_box_ap",
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
        result = self.result(step)
        if not result.finished:
            return result
        final = self.final_scores(step)
        return dataclasses.replace(
            result, box_ap=final["val_box_ap"], mask_ap=final.get("val_mask_ap"), box_ap50=final["val_box_ap50"]
        )

    def describe(self) -> list[str]:
        config, plan, train, val = self.config, self.plan, self.parts.train, self.parts.val
        trunk = self.model.trunk
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        what = "boxes and masks" if train.has_masks else "boxes"
        return [
            f"data      {train.origin}: {len(train):,} images, {len(train.objects.labels):,} objects, {what}; "
            f"{len(train.classes)} classes ({listed(train.classes, 5)}); {plan.steps_per_epoch} steps an epoch",
            f"validate  {val.origin}: {len(val):,} images, {config.img_size} px at the longer side",
            *train.remarks,
            *self.start.describe(),
            f"network   {trunk.name} with Mask R-CNN of {config.channels} channels: {millions:.1f} M parameters; "
            f"drop path {trunk.drop_path:g}, layer decay {config.layer_decay:g}",
            *plan.describe(),
            f"out       {config.out}; validated every {self.eval_steps} steps",
        ]
