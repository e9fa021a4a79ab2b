"""`fastmim adapt`: pre-training that goes on from a public model, measured before the first step and after the last."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from fastmim import weights
from fastmim.adaptation.settings import AdaptConfig
from fastmim.adaptation.verdict import Scores, Verdict, judge, measure
from fastmim.config import takes
from fastmim.data.labelled import Labelled
from fastmim.errors import RequestError
from fastmim.method.build import with_backbone
from fastmim.pretraining import Pretraining
from fastmim.system.display import say
from fastmim.system.files import read_json, write_json
from fastmim.training.checkpoint import Checkpoint
from fastmim.training.logs import Logs
from fastmim.training.loop import Periodic
from fastmim.training.result import Result as RunResult
from fastmim.training.run import launch
from fastmim.training.world import World

_LARGEST = 256
"""Images of more pixels are not the default: their cost grows with the square, and most public models know 224."""
_USUAL = 224


@dataclass(frozen=True)
class Result(RunResult):
    """How an adaptation ended."""

    verdict: Verdict | None = None
    """What the labelled images show; None before the end, or without labelled images."""


@takes(AdaptConfig)
def adapt(*, overwrite: bool = False, dry_run: bool = False, **settings: Any) -> Result:
    """Adapt a public model to unlabelled images, and say whether it got better.

    Arguments, resuming and errors are those of `fastmim.pretrain`, without `periodic` and with the fields of
    `AdaptConfig` as settings (`fastmim adapt --help` lists them).

    Example:
        >>> name = "timm:vit_tiny_patch16_224"
        >>> adapted = fastmim.adapt(init=name, data="photos/", probe="labelled/", out="runs/adapted")
        >>> print(adapted.verdict.sentence)
    """
    return launch(Adaptation, settings, overwrite=overwrite, dry_run=dry_run)


class Adaptation(Pretraining):
    """Pre-training that begins with somebody's weights, which are kept and compared with."""

    config_class = AdaptConfig
    config: AdaptConfig

    def __init__(self, config: AdaptConfig, console: Console, world: World) -> None:
        if config.init is None:
            raise RequestError(
                "init is not given; expected the weights to adapt: a timm model (--init timm:NAME), a model of the Hub "
                "(hf-hub:OWNER/NAME), a run or a weights file"
            )
        if config.keep == "best" and config.probe is None:
            raise RequestError(
                "keep is best, and probe is not given; expected labelled images to judge by: add --probe"
            )
        super().__init__(sized(config), console, world)

    def build(self, found: Checkpoint | None) -> None:
        super().build(found)
        self.is_new = found is None
        if found and self.probe_data and not self.directory.adaptation.exists():
            raise RequestError(
                f"{self.directory.adaptation} is missing, with the scores before the first step; expected it beside "
                f"the checkpoints: restore it, or start over with --overwrite"
            )

    def periodic(self, logs: Logs) -> list[Periodic]:
        with self.world.together():
            if self.world.main and self.is_new:
                self._keep_untouched(logs)
        return super().periodic(logs)

    def _keep_untouched(self, logs: Logs) -> None:
        """Save the weights as they are before the first step, and score them."""
        init = [origin for origin in self.learned_from if origin["as"] == "init"]
        about = {"mean": self.mean, "std": self.std, "learned_from": init, "steps": 0}
        weights.save(self.directory.weights_before, self.model.backbone, about=about)
        if self.probe_data is None:
            return
        logs.say(f"measuring the untouched network on {self.config.probe}")
        before = self._score(self.probe_data)
        write_json(self.directory.adaptation, {"before": before.to_json()})
        logs.say(f"before: {before.describe()}")

    def _score(self, labelled: Labelled) -> Scores:
        """Score the network as it is now, at the size of the last stage."""
        model, size = self.model, self.plan.stages[-1].size
        if model.backbone.img_size != size:
            model = copy.deepcopy(model)
            model.set_input_size(size)
        return measure(
            model,
            labelled,
            seed=self.config.seed,
            batch_size=min(256, self.plan.share * self.plan.copies // self.plan.stages[-1].accumulation),
            num_workers=self.plan.num_workers,
            bf16=self.plan.bf16,
            mean=self.mean,
            std=self.std,
        )

    def finish(self, step: int) -> Result:
        found = super().finish(step)
        result = Result(found.out, found.step, found.total_steps)
        if not result.finished:
            return result
        if self.probe_data is None:
            kept = f"untouched weights: {self.directory.weights_before}"
            say(self.console, f"verdict   unknown: a falling loss does not tell whether a network got better; {kept}")
            say(self.console, "          with labelled images, `fastmim probe --weights` compares the two")
            return result
        report = read_json(self.directory.adaptation)
        before, after = Scores.from_json(report.get("before")), self._score(self.probe_data)
        verdict = judge(before, after, seed=self.config.seed)
        about = {key: value for key, value in dataclasses.asdict(verdict).items() if key != "sentence"}
        write_json(self.directory.adaptation, report | {"after": after.to_json(), "verdict": about})
        say(self.console, f"before    {before.describe()}\nafter     {after.describe()}\nverdict   {verdict.sentence}")
        say(self.console, f"weights   {self._keep(verdict)}")
        return dataclasses.replace(result, verdict=verdict)

    def _keep(self, verdict: Verdict) -> str:
        """Put the weights where `keep` wants them, and say where they are."""
        adapted, untouched = self.directory.weights, self.directory.weights_before
        if self.config.keep == "both":
            return f"adapted {adapted}, untouched {untouched}"
        if verdict.difference > 0:
            return f"{adapted} has the adapted ones, which have the better linear probe; untouched {untouched}"
        shutil.copyfile(untouched, adapted)
        return f"{adapted} has the untouched ones, as the adapted ones have no better linear probe"

    def describe(self) -> list[str]:
        *lines, out = super().describe()
        if self.config.probe is None:
            note = "note      without --probe (labelled images) nobody can say whether the network gets better"
            return [*lines, note, out]
        return [*lines, out]


def sized(config: AdaptConfig) -> AdaptConfig:
    """The config with its backbone, and with an image size that the initial weights know unless it gives one.

    A teacher that is the initial weights sees images of the same size.

    Raises:
        RequestError: there are no such weights.
    """
    found = with_backbone(config)
    given = found.given
    if "img_size" in given or "stages" in given:
        return found
    opened = weights.open_weights(config.init, backbone=found.backbone, backbone_args=found.backbone_args)
    known = opened.img_size or _USUAL
    size = known if known <= _LARGEST else _USUAL
    seen = {"teacher_size": size} if given.get("teacher") == "init" and size != known else {}
    return type(config)(**seen | given | {"img_size": size})
