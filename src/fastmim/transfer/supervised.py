"""Training from given weights on labels of any kind: what fine-tuning, detection and segmentation share as runs."""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from typing import Any, Protocol, TypeVar

from torch import nn
from torch.optim import AdamW

from fastmim.backbone.surgery import check_lists_blocks
from fastmim.data import sources
from fastmim.data.sources import Source
from fastmim.errors import RequestError, listed
from fastmim.system.display import say
from fastmim.training import optim
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.logs import Logs
from fastmim.training.loop import Periodic
from fastmim.training.run import Task
from fastmim.training.world import ALONE
from fastmim.transfer.start import Start, find_start
from fastmim.transfer.supervised_settings import SupervisedConfig
from fastmim.transfer.validation import Validator

Config = TypeVar("Config", bound=SupervisedConfig)


class Network(Protocol):
    """A network that is trained with learning rates that fall towards its input."""

    def parameter_groups(self, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Groups for the optimiser, with "lr_scale"."""


class Supervised(Task[Config]):
    """A network that starts from weights, on images with labels of some kind, validated as it trains."""

    validator: Validator[Any, Any]

    @property
    @abstractmethod
    def val(self) -> Source:
        """The images to validate on."""

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their numbers."""

    @property
    @abstractmethod
    def eval_steps(self) -> int:
        """Steps between validations."""

    @abstractmethod
    def build_model(self, *, resuming: bool) -> nn.Module:
        """Make the network, a `Network`, at `start`, on the plan's device; a checkpoint may replace its weights."""

    @abstractmethod
    def build_validator(self, logs: Logs) -> Validator[Any, Any]:
        """Make what validates the model."""

    @functools.cached_property
    def fresh_start(self) -> Start:
        """The weights that the config names; a run that resumes does without."""
        config = self.config
        return find_start(config.weights, backbone=config.backbone, backbone_args=config.backbone_args)

    @property
    def inherited_range(self) -> str | None:
        """The range of greys that the weights were trained on, where the settings leave it open."""
        return self.fresh_start.range if self.config.range == "auto" else None

    @property
    def fill(self) -> tuple[int, ...]:
        """The mean colour, RGB from 0 to 255, for what lies beyond an image."""
        return tuple(min(255, max(0, round(255 * value))) for value in self.mean)

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        return {"data": sources.fingerprint(self.source), "val_data": sources.fingerprint(self.val)}

    @property
    def num_images(self) -> int:
        return len(self.source) + len(self.val)

    def sizes(self) -> tuple[tuple[int, float], ...]:
        return ((self.config.img_size, 1.0),)

    def check_resumable(self, found: Checkpoint) -> None:
        super().check_resumable(found)
        if (expected := found.manifest["classes"]) != self.classes:
            raise RequestError(
                f"data is {self.config.data} with classes {listed(self.classes)}; expected those that the run in "
                f"{self.config.out} began with, {listed(expected)}: take another --out"
            )

    def build(self, found: Checkpoint | None) -> None:
        config = self.config
        self.start = Start(**found.manifest["start"]) if found else self.fresh_start
        self.mean, self.std = config.mean or tuple(self.start.mean), config.std or tuple(self.start.std)
        self.model = self.build_model(resuming=bool(found))
        self.build_optimizer(self.model)  # refuses layers that timm cannot tell apart before anything is written

    def check_shards(self, model: nn.Module, name: str) -> None:
        """Refuse `--shard` for a backbone that does not list its blocks."""
        if self.config.shard:
            check_lists_blocks(model, name, "shard")

    def build_optimizer(self, model: nn.Module) -> AdamW:
        network: Network = model  # type: ignore[assignment]
        groups = network.parameter_groups(weight_decay=self.config.weight_decay, layer_decay=self.config.layer_decay)
        return optim.adamw(groups, betas=self.config.betas)

    def facts(self) -> dict[str, Any]:
        return {
            "num_images": self.plan.num_images,
            "fingerprints": self.fingerprints,
            "classes": self.classes,
            "start": dataclasses.asdict(self.start),
            "stages": [dataclasses.asdict(stage) for stage in self.plan.stages],
        }

    def about(self) -> dict[str, Any]:
        """Facts for weights files, as JSON types."""
        config = self.config
        return {
            "recipe": config.recipe,
            "data": config.data,
            "range": config.range,
            "mean": self.mean,
            "std": self.std,
        }

    def periodic(self, logs: Logs) -> list[Periodic]:
        self.validator = self.build_validator(logs)
        # Of a divided model only the main process has the whole.
        validate = self.world.on_main(self.validator) if self.plan.shard else self.validator
        validating = (self.eval_steps, validate)
        return [*super().periodic(logs), validating, *self.reporting(f"{self.eval_steps} steps", logs)]

    def validation(self, logs: Logs) -> dict[str, Any]:
        """What every validator is made of."""
        return {
            "directory": self.directory,
            "total_steps": self.plan.total_steps,
            "about": self.about(),
            "bad_images": self.bad_images,
            "say": logs.say,
            "num_images": len(self.val),
            "world": ALONE if self.plan.shard else self.world,
        }

    def final_scores(self, step: int) -> dict[str, Any]:
        """Write the final weights, and say how good they are; the contents of `evaluation.json`."""
        self.validator.save(self.directory.weights, step)
        final = self.validator.last_scores(step)
        say(self.console, self.validator.summary(final))
        return final
