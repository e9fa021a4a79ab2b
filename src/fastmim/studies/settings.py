"""Settings of `study`; does not import torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from fastmim import config as configs
from fastmim.config import Settings, check_positive, check_workers
from fastmim.data.settings import check_range
from fastmim.errors import RequestError

MIN_STEPS = 100
"""Fewest steps of a run that a budget must allow, unless an epoch is shorter."""

MOST_FINETUNE_STEPS, FEWEST_FINETUNE_STEPS = 400, 100
"""Default steps of a fine-tuning, as the budget allows."""

MAX_EPOCHS = 800.0
"""Longest pre-training that a budget is spent on."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Settings):
    """Settings to compare, labelled images to compare them on, and budget."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"data", "val_data", "pretrain_data"})
    RESUMABLE: ClassVar[frozenset[str]] = frozenset({"out", "device", "parallel", "records", "num_workers"})

    data: str = ""
    """Labelled images, as `fastmim finetune --data` takes them; pre-training uses the training split unlabelled."""

    val_data: str | None = None
    """Labelled images to validate on. [default: those in --data, else --val-share of it]"""

    val_share: float = 0.1
    """Share of the images held out for validation if --data has no validation split."""

    pretrain_data: str | None = None
    """Other images to pre-train on, labelled or not. [default: the training images of --data]"""

    range: str = "auto"
    """Greys of more than 8 bits that become black and white in all runs, as in pretrain: `16bit`, LOW:HIGH, or `auto`,
    by which pre-training measures its images, fine-tuning takes that over, and from scratch it measures its own."""

    sweep: tuple[str, ...] = ()
    """SETTING=VALUE,VALUE of `fastmim pretrain`, such as target=hog,pixels; repeat it for further settings: all
    combinations are run. Values of `stages` are separated by slashes: stages=none/16:0.5,32:0.5."""

    one_at_a_time: bool = False
    """Instead of all combinations, run the first value of every setting, then each other value alone."""

    set: tuple[str, ...] = ()
    """SETTING=VALUE of `fastmim pretrain` for all runs, such as batch_size=128."""

    finetune_set: tuple[str, ...] = ()
    """SETTING=VALUE of `fastmim finetune` for all runs, including those from scratch, such as lr=1e-3."""

    backbone: str | None = None
    """Any timm model. [default: up to 64 px a ViT with 4 blocks and patches of 4 px, else vit_small_patch16_224]"""

    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm.create_model, such as --backbone-args.depth 4."""

    seeds: int = 3
    """Runs of every point; each seed draws weights, order, masks and labels anew, the same for all points. A larger
    number with the same --out adds runs to a study, regardless of its budget."""

    budget: str | None = None
    """Wall-clock time of the whole study on all devices: 90s, 30m, 2h, 1h30m. The time left by fine-tuning and probing
    is divided among the pre-trainings as --equal says."""

    equal: Literal["images", "cost"] = "images"
    """What all pre-trainings get the same of: `images`, or `cost`, the device-seconds of their steps as measured, so
    that a cheaper step means more of them (needs --budget)."""

    epochs: float | None = None
    """Passes over the images in every pre-training, instead of --budget."""

    steps: int | None = None
    """Steps of every pre-training, instead of --budget."""

    labels: str = "1%,10%"
    """Comma-separated numbers of labelled images to fine-tune on, or shares of the training images."""

    finetune_size: int | None = None
    """Side in pixels at which every network is fine-tuned and probed. [default: the study's largest]"""

    finetune_steps: int | None = None
    """Steps of every fine-tuning, in batches of 128 images (or of all labelled images, if fewer). [default: 400, or
    fewer so that fine-tuning and probing take at most half of --budget]"""

    probe: Literal["knn", "linear", "none"] = "knn"
    """Method that measures frozen features."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes every accelerator, or the CPU."""

    parallel: int | None = None
    """Number of runs at a time. [default: one per accelerator; on a CPU as many as its cores hold with
    OMP_NUM_THREADS threads each (1 if not set)]"""

    num_workers: int | None = None
    """Worker processes that load data for each run. [default: 0 on a CPU, else the cores divided among the runs]"""

    out: Path = Path("runs/study")
    """Study directory. The same command with the same directory resumes; --config takes its config.yaml."""

    records: Path | None = None
    """Directory for copies of the record and the plot: study-NAME-DATE.json and .png, NAME from --out."""

    def __post_init__(self) -> None:
        check_positive(self, "seeds", "finetune_steps", "finetune_size", "parallel", "steps", "epochs")
        check_workers(self.num_workers)
        check_range(self.range)
        if self.budget is not None:
            parse_budget(self.budget)
        given = [name for name in ("budget", "epochs", "steps") if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(f"{' and '.join(given)} are given; expected one of them: drop the others")
        if self.equal == "cost" and (self.epochs or self.steps):
            raise RequestError(
                f"equal is 'cost' with {given[0]}, which fixes the length of every pre-training; expected --budget"
            )
        self.num_labels(1_000_000)

    def num_labels(self, num_images: int) -> tuple[int, ...]:
        """Return the numbers of labels, in ascending order, for a training set of `num_images`."""
        numbers = []
        for text in self.labels.split(","):
            match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]+)?)(%?)\s*", text)
            value = round(float(match[1]) * (num_images / 100 if match[2] else 1)) if match else 0
            if match is None or (not match[2] and "." in match[1]) or float(match[1]) <= 0:
                raise RequestError(f"labels is {self.labels!r}; expected numbers or shares, such as 600,6000 or 1%,10%")
            numbers.append(max(1, value))
        return tuple(sorted(set(numbers)))


def parse_budget(text: str) -> float:
    """Convert `90s`, `30m`, `2h` or `1h30m` to seconds.

    Raises:
        RequestError: anything else.
    """
    number = r"(?:([0-9]{{1,9}}(?:\.[0-9]+)?)\s*{})?"
    match = re.fullmatch(r"\s*" + r"\s*".join(number.format(unit) for unit in "hms") + r"\s*", text)
    amounts = [float(group or 0) for group in match.groups()] if match else [0.0]
    if not sum(amounts):
        raise RequestError(f"budget is {text!r}; expected a time such as 90s, 30m, 2h or 1h30m")
    hours, minutes, seconds = amounts
    return 3600 * hours + 60 * minutes + seconds


def build(*layers: Mapping[str, Any]) -> StudyConfig:
    """Build settings from mappings, later ones overriding earlier ones; `sweep` and `set` may be mappings too.

    Raises:
        RequestError: an unknown or wrong setting.
    """
    lists = ("sweep", "set", "finetune_set")
    texts = ({key: _texts(key, value) if key in lists else value for key, value in layer.items()} for layer in layers)
    return configs.build(StudyConfig, *texts)


def _texts(name: str, value: Any) -> Any:
    """`SETTING=VALUE,VALUE` texts, from texts or from a mapping of settings to values."""
    if isinstance(value, Mapping):
        return [f"{key}={_joined(key, values)}" for key, values in value.items()]
    if not isinstance(value, list | tuple):
        raise RequestError(f"{name} is {value!r}; expected texts such as {_example(name)}")
    return value


def _joined(key: str, values: Any) -> str:
    listed = values if isinstance(values, list | tuple) else [values]
    return separator(key).join("none" if value is None else str(value) for value in listed)


def separator(key: str) -> str:
    """Return the separator of a swept setting's values: stages contain commas themselves."""
    return "/" if key == "stages" else ","


def _example(name: str) -> str:
    return "target=hog,pixels" if name == "sweep" else "lr=1e-3"


def pair(name: str, text: str) -> tuple[str, str]:
    """Split `SETTING=VALUE`, with dashes in the setting's name turned into underscores.

    Raises:
        RequestError: not such a pair.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise RequestError(f"{name} is {text!r}; expected SETTING=VALUE, such as {_example(name)}")
    return key.strip().replace("-", "_"), value.strip()


def parse_value(text: str) -> Any:
    """Read `none` as None, lists, mappings and truth values as YAML, and anything else as text."""
    text = text.strip()
    if text == "none":
        return None
    # Not everything as YAML: there, a stage such as 16:1 is sixteen minutes and one second.
    return configs.parse("a swept value", text) if text[0] in "[{" or text in ("true", "false") else text
