"""Pre-training: masked image modeling of a backbone, as a training run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import AdamW

from fastmim import weights
from fastmim.backbone.surgery import check_lists_blocks
from fastmim.config import takes
from fastmim.data import augment
from fastmim.data.labelled import Labelled, open_labelled
from fastmim.data.settings import ImageConfig
from fastmim.data.sources import Source, open_source
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.errors import RequestError
from fastmim.method import pictures
from fastmim.method.build import (
    build_model,
    from_timm,
    load_teacher,
    normalisation,
    open_teacher,
    start_from,
    with_backbone,
)
from fastmim.method.loss import describe_explained, explained_variance
from fastmim.method.masking import num_visible
from fastmim.method.mim import MIM
from fastmim.method.settings import PretrainConfig
from fastmim.method.teacher import Teacher
from fastmim.published import RECIPES
from fastmim.system import files
from fastmim.system.display import say
from fastmim.system.notebook import Place
from fastmim.training import measuring, optim
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.logs import Logs
from fastmim.training.loop import Periodic
from fastmim.training.result import Result
from fastmim.training.run import Task, launch
from fastmim.training.world import World
from fastmim.transfer.features import online_probe
from fastmim.transfer.features import pictures as features
from fastmim.weights import licences

NUM_PICTURED = 6
_FEW = 4  # visible blocks; at 128 px a backbone of stride 32 has as many


@takes(PretrainConfig)
def pretrain(
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    periodic: Callable[[int, MIM], Mapping[str, float] | None] | None = None,
    periodic_every: str = "10%",
    **settings: Any,
) -> Result:
    """Pre-train a backbone by masked image modeling (FastMIM).

    The same call with the same `out` resumes an interrupted run.

    Args:
        overwrite: Delete the run that `out` holds and start from scratch.
        dry_run: Print the resolved config and the plan, and stop.
        periodic: A function of the steps made and the model, which is called as the run goes on and after the last step
            and returns numbers by name: they go into metrics.jsonl and are curves of the report. It runs in the main
            process while others wait, with the model in evaluation mode and without gradients; modes and random
            generators are restored. It must not change the weights.
        periodic_every: How often: "500 steps", "5 epochs" or "10%".
        settings: Fields of `PretrainConfig` (`fastmim pretrain --help` lists them).

    Raises:
        RequestError: the request is wrong.
        RunError: the run failed, or `periodic` did.

    Example:
        >>> run = fastmim.pretrain(data="photos/", backbone="vit_tiny_patch16_224", out="runs/photos")
        >>> run.finished, run.weights
        (True, PosixPath('runs/photos/weights.safetensors'))
    """
    return launch(
        Pretraining, settings, overwrite=overwrite, dry_run=dry_run, periodic=periodic, periodic_every=periodic_every
    )


class Pretraining(Task[PretrainConfig]):
    """A MIM on unlabelled images; what remains is the backbone."""

    config_class = PretrainConfig
    recipes = RECIPES
    model: MIM
    start: str | None = None
    """What was taken from the weights of `init`, once built."""
    mean: tuple[float, ...]
    """Normalisation of the images, per channel, for pixels in [0, 1]: that of the initial weights, else ImageNet's."""
    std: tuple[float, ...]

    def __init__(
        self,
        config: PretrainConfig,
        console: Console,
        world: World,
        *,
        periodic: Callable[[int, MIM], Mapping[str, float] | None] | None = None,
        periodic_every: str = "10%",
    ) -> None:
        if periodic is not None:
            measuring.check(periodic, periodic_every)
        self.measure, self.measure_every, self.place = periodic, periodic_every, Place()
        super().__init__(with_backbone(config), console, world)
        images = ImageConfig(max_pixels=config.max_pixels)
        self.probe_data: Labelled | None = (
            open_labelled(config.probe, images, inherited=self.config.range) if config.probe else None
        )

    def open_data(self) -> Source:
        config, init = self.config, self.config.init
        inherited = None
        if init and not from_timm(init) and config.range == "auto":
            inherited = weights.read(init)[1].get("range")
        return open_source(config.data, config, inherited=inherited)

    def sizes(self) -> tuple[tuple[int, float], ...]:
        return self.config.sizes()

    def build(self, found: Checkpoint | None) -> None:
        config, device, init = self.config, self.plan.device, self.config.init
        self.mean, self.std = normalisation(found) if found else (IMAGENET_MEAN, IMAGENET_STD)
        self.learned_from: list[licences.Origin] = found.manifest.get("learned_from", []) if found else []
        if init and found is None:  # otherwise the checkpoint has the weights
            opened = weights.open_weights(init, backbone=config.backbone, backbone_args=config.backbone_args)
            self.mean, self.std = opened.mean, opened.std
            self.learned_from = licences.used("init", opened.origins)
        self.teacher = self._load_teacher(found)
        self.model = build_model(config, resuming=found is not None, teacher=self.teacher).to(device)
        if config.shard:
            check_lists_blocks(self.model.backbone.model, self.model.backbone.name, "shard")
        if (size := self.plan.stages[0].size) != self.model.backbone.img_size:
            self.model.set_input_size(size)  # the share of the config's first stage is less than a step
        if init and found is None and not from_timm(init):
            self.start = start_from(self.model, init, target=config.target)
        if self.teacher:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.plan.bf16):
                self.teacher.check_finite()
        self.build_optimizer(self.model)  # refuses layers that timm cannot tell apart before anything is written
        self._mean_and_std = [torch.tensor(values, device=device) for values in (self.mean, self.std)]

    def _load_teacher(self, found: Checkpoint | None) -> Teacher | None:
        """Load the teacher, and refuse another than the run began with."""
        opened = open_teacher(self.config)
        if opened is None:
            return None
        teacher = load_teacher(self.config, opened, mean=self.mean, std=self.std)
        self.teacher_checksum = teacher.checksum()
        if found and (expected := found.manifest["teacher_checksum"]) != self.teacher_checksum:
            raise RequestError(
                f"teacher is {self.config.teacher}, whose weights have the checksum {self.teacher_checksum}; expected "
                f"{expected}, as when the run in {self.config.out} began: restore them, or take another --out"
            )
        if not found:
            self.learned_from = [*self.learned_from, *licences.used("teacher", opened.origins)]
        return teacher

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        unlabelled = {name: batch[name] for name in ("images", "keys")}
        return augment.prepare(unlabelled, *self._mean_and_std)

    def build_optimizer(self, model: nn.Module) -> AdamW:
        config = self.config
        if config.layer_decay == 1:
            return optim.build(model, weight_decay=config.weight_decay, betas=config.betas)
        assert isinstance(model, MIM)
        groups = model.parameter_groups(weight_decay=config.weight_decay, layer_decay=config.layer_decay)
        return optim.adamw(groups, betas=config.betas)

    def facts(self) -> dict[str, Any]:
        stages = [dataclasses.asdict(stage) for stage in self.plan.stages]
        taught = {"teacher_checksum": self.teacher_checksum} if self.teacher else {}
        images = {"num_images": self.plan.num_images, "fingerprints": self.fingerprints}
        images |= {"mean": list(self.mean), "std": list(self.std)}
        return {**images, "stages": stages, "learned_from": self.learned_from, **taught}

    def periodic(self, logs: Logs) -> list[Periodic]:
        config, found, on_main = self.config, super().periodic(logs), self.world.on_main
        if config.picture_every != "never":
            found.append((self.plan.steps(config.picture_every), on_main(functools.partial(self.draw_sample, logs))))
        if self.probe_data:
            probe = functools.partial(self.probe, self.probe_data, logs)
            found.append((self.plan.steps(config.probe_every), on_main(probe)))
        if self.measure:
            measure = on_main(measuring.measuring(self.measure, self.model, self.plan.device))
            found.append((self.plan.steps(self.measure_every), measure))
        every = config.picture_every if config.picture_every != "never" else "10%"
        return [*found, *self.reporting(every, logs)]

    def draw_sample(self, logs: Logs, step: int) -> dict[str, float]:
        """Draw `step_N.png`, the same few images and masks every time, and measure how much is predicted."""
        images, output = pictures.predict(
            self.model, self.source, num_images=NUM_PICTURED, seed=self.config.seed, mean=self.mean, std=self.std
        )
        caption = f"{self.config.out.resolve().name}, step {step}"
        picture = pictures.picture(images, output, self.model.target, mean=self.mean, std=self.std, caption=caption)
        path = self.directory.picture(f"step_{step:09d}.png")
        pictures.save(picture, path)
        self.place.draw(path)
        explained = explained_variance(output["prediction"], output["target"], output["mask"])
        logs.say(f"{path}: {describe_explained(explained)}")
        self.draw_features(images, step)
        return {"explained_variance": explained}

    def draw_features(self, images: Tensor, step: int) -> None:
        """Draw `features_N.png` and, of a plain ViT, `attention_N.png` of the same images; measure the blocks."""
        backbone, place = self.model.backbone, f"{step:09d}.png"
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        shown, images = (images * std + mean).clamp(0, 1), images.to(self.plan.device)
        caption = f"step {step}"
        blocks = features.measure_blocks(backbone, images)
        files.write_json(self.directory.blocks, {"step": step, "blocks": blocks})
        page = features.draw_features(backbone, images, shown, caption=caption)
        pictures.save(page, self.directory.picture(f"features_{place}"))
        if "attention_distance" in blocks[-1]:
            page = features.draw_attention(backbone, images, shown, caption=caption)
            pictures.save(page, self.directory.picture(f"attention_{place}"))

    def probe(self, labelled: Labelled, logs: Logs, step: int) -> dict[str, float]:
        """Measure and print held-out loss, kNN accuracy and effective rank of the model as it is now."""
        metrics = online_probe.measure(
            self.model,
            labelled,
            seed=self.config.seed,
            batch_size=min(256, self.config.batch_size // self.plan.stages[0].accumulation),
            num_workers=self.plan.num_workers,
            bf16=self.plan.bf16,
            mean=self.mean,
            std=self.std,
        )
        logs.say(f"probe at step {step}: {online_probe.describe(metrics)}")
        return metrics

    def finish(self, step: int) -> Result:
        result = self.result(step)
        if result.finished:
            about = {
                "recipe": self.config.recipe,
                "data": self.config.data,
                "range": self.config.range,
                "steps": step,
                "mean": self.mean,
                "std": self.std,
                "learned_from": self.learned_from,
            }
            weights.save(result.weights, self.model.backbone, about=about)
            say(self.console, f"done: {result.weights}")
        return result

    def describe(self) -> list[str]:
        config, plan, model, backbone = self.config, self.plan, self.model, self.model.backbone
        num_blocks = (backbone.img_size // model.block) ** 2
        millions = sum(p.numel() for p in backbone.parameters()) / 1e6
        depth = f", first {backbone.trained_blocks} of {backbone.num_blocks} blocks" if config.encoder_depth < 1 else ""
        several = f", {config.masks_per_image} masks an image" if config.masks_per_image > 1 else ""
        chosen = " (auto)" if config.decoder == "auto" else ""
        lines = [
            f"data      {config.data}: {plan.num_images:,} images, {plan.steps_per_epoch} steps an epoch",
            *self.source.remarks,
            f"backbone  {config.backbone}: {millions:.1f} M parameters, stride {backbone.stride}, "
            f"width {backbone.width}{depth}",
            f"masking   blocks of {model.block} px, {num_blocks} an image, {config.mask_ratio:.0%} hidden, "
            f"{config.masking}{several}",
            f"target    {config.target}, decoder {model.decoder.extra_repr()}{chosen}, {config.loss} loss",
            *plan.describe(),
        ]
        if (visible := num_visible(num_blocks, config.mask_ratio)) < _FEW:
            lines.append(
                f"note      {visible} of {num_blocks} blocks visible, too few to predict the others from: "
                f"raise --img-size"
            )
        if self.start:
            lines.append(f"init      {self.start}")
        if self.teacher:
            network = self.teacher.network
            lines.insert(
                4,
                f"teacher   {config.teacher}: {network.name} at {network.input_size} px, {config.teacher_loss} loss, "
                f"checksum {self.teacher_checksum}",
            )
        lines += licences.describe(self.learned_from)
        if config.probe:
            lines.append(f"probe     {config.probe}, every {plan.steps(config.probe_every)} steps")
        if self.measure:
            name = measuring.name_of(self.measure)
            lines.append(f"periodic  {name}, every {plan.steps(self.measure_every)} steps")
        return [*lines, f"out       {config.out}"]
