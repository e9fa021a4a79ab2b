"""What a study is asked for: its settings, defaults and checks. No torch here: `fastmim --help` must be instant."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from fastmim import config as configs
from fastmim.errors import RequestError

MIN_STEPS = 100
"""A budget must hold an epoch for each run, or so many steps where an epoch is longer."""

MOST_FINETUNE_STEPS, FEWEST_FINETUNE_STEPS = 400, 100
"""What a fine-tuning gets where nothing is said, as the budget allows."""

MAX_EPOCHS = 800.0
"""Longest pre-training that a budget is spent on."""

# What may change when a study goes on: where it runs, never what comes out.
RESUMABLE = frozenset({"out", "device", "parallel", "records", "num_workers"})


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Which settings are compared, on which images, and what it may cost."""

    data: str = ""
    """Labelled images, as `fastmim finetune --data` takes them; pre-training sees the training part without labels."""

    val_data: str | None = None
    """Labelled images to validate on, where --data does not hold them."""

    val_share: float = 0.1
    """Share of the images to validate on where none are set apart."""

    pretrain_data: str | None = None
    """Other images to pre-train on, labelled or not. [default: the training images of --data]"""

    sweep: tuple[str, ...] = ()
    """SETTING=VALUE,VALUE of `fastmim pretrain`, such as target=hog,pixels; again for a further setting: all
    combinations are run. Of `stages` the values are parted by a slash: stages=none/16:0.5,32:0.5."""

    one_at_a_time: bool = False
    """Instead of all combinations: the first value of every setting, then each other value alone."""

    set: tuple[str, ...] = ()
    """SETTING=VALUE of `fastmim pretrain` for all runs, such as batch_size=128."""

    finetune_set: tuple[str, ...] = ()
    """SETTING=VALUE of `fastmim finetune` for all runs, from scratch too, such as lr=1e-3."""

    backbone: str | None = None
    """Any timm model. [default: a ViT of 4 blocks in patches of 4 up to 64 px, else vit_small_patch16_224]"""

    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm.create_model, such as --backbone-args.depth 4."""

    seeds: int = 3
    """Runs of every point; each seed draws weights, order, masks and labels anew, the same for all points. A larger
    number with the same --out adds runs to a study, whatever its budget was."""

    budget: str | None = None
    """Wall-clock time for the whole study, all devices together: 90s, 30m, 2h, 1h30m. What fine-tuning and probing
    leave is divided so that all points are pre-trained on the same number of images."""

    epochs: float | None = None
    """Passes over the images for every pre-training, instead of what --budget allows."""

    steps: int | None = None
    """Steps of every pre-training, likewise."""

    labels: str = "1%,10%"
    """Labelled images to fine-tune on, few and many: numbers or shares of the training images, in commas."""

    finetune_size: int | None = None
    """Side in pixels that every network is fine-tuned and probed at. [default: the largest of the study]"""

    finetune_steps: int | None = None
    """Steps of every fine-tuning, of 128 images (or all labels, where they are fewer). [default: 400, or fewer, so
    that fine-tuning and probing take at most half of --budget]"""

    probe: Literal["knn", "linear", "none"] = "knn"
    """What frozen features are measured with."""

    device: str = "auto"
    """`auto` takes every accelerator, or the processor; `cpu`, `cuda`, `cuda:1`."""

    parallel: int | None = None
    """Runs side by side. [default: one for each accelerator; on the processor one for each core, of
    OMP_NUM_THREADS threads (1 if not set)]"""

    num_workers: int | None = None
    """Data processes of each run. [default: 0 on the processor, else the cores shared by the runs]"""

    out: Path = Path("runs/study")
    """Directory of the study. The same command with the same directory resumes, run by run."""

    records: Path | None = None
    """Also write record and plot here, as study-NAME-DATE.json and .png with the name of --out."""

    def __post_init__(self) -> None:
        for name in ("seeds", "finetune_steps", "finetune_size", "parallel", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}; expected at least 1")
        if self.epochs is not None and not self.epochs > 0:
            raise RequestError(f"epochs is {self.epochs:g}; expected more than 0")
        if self.budget is not None:
            parse_budget(self.budget)
        given = [name for name in ("budget", "epochs", "steps") if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(f"{' and '.join(given)} are given; expected one of them: drop the others")
        self.num_labels(1_000_000)

    def num_labels(self, num_images: int) -> tuple[int, ...]:
        """The numbers of labels, rising, for so many training images."""
        numbers = []
        for text in self.labels.split(","):
            match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)(%?)\s*", text)
            value = round(float(match[1]) * (num_images / 100 if match[2] else 1)) if match else 0
            if match is None or (not match[2] and "." in match[1]) or float(match[1]) <= 0:
                raise RequestError(f"labels is {self.labels!r}; expected numbers or shares, such as 600,6000 or 1%,10%")
            numbers.append(max(1, value))
        return tuple(sorted(set(numbers)))


def parse_budget(text: str) -> float:
    """`90s`, `30m`, `2h` or `1h30m` in seconds.

    Raises:
        RequestError: anything else.
    """
    number = r"(?:(\d+(?:\.\d+)?)\s*{})?"
    match = re.fullmatch(r"\s*" + r"\s*".join(number.format(unit) for unit in "hms") + r"\s*", text)
    amounts = [float(group or 0) for group in match.groups()] if match else [0.0]
    if not sum(amounts):
        raise RequestError(f"budget is {text!r}; expected a time such as 90s, 30m, 2h or 1h30m")
    hours, minutes, seconds = amounts
    return 3600 * hours + 60 * minutes + seconds


def build(*layers: Mapping[str, Any]) -> StudyConfig:
    """A config from mappings, later ones overriding earlier ones; `sweep` and `set` may be mappings too.

    Raises:
        RequestError: an unknown or wrong setting.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        lengths = {"budget", "epochs", "steps"}
        if any(layer.get(name) is not None for name in lengths):  # a length given later replaces one given earlier
            merged |= dict.fromkeys(lengths)
        merged |= layer
    lists: dict[str, Any] = {
        name: _texts(name, merged.pop(name)) for name in ("sweep", "set", "finetune_set") if name in merged
    }
    config: StudyConfig = configs.build(StudyConfig, merged)
    return dataclasses.replace(config, **lists)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """`SETTING=VALUE,VALUE` texts, from texts or from a mapping of settings to values."""
    if isinstance(value, Mapping):
        return tuple(f"{key}={_joined(key, values)}" for key, values in value.items())
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise RequestError(f"{name} is {value!r}; expected texts such as {_example(name)}")
    return tuple(value)


def _joined(key: str, values: Any) -> str:
    listed = values if isinstance(values, list | tuple) else [values]
    return separator(key).join("none" if value is None else str(value) for value in listed)


def separator(key: str) -> str:
    """What parts the values of a swept setting: stages hold commas themselves."""
    return "/" if key == "stages" else ","


def _example(name: str) -> str:
    return "target=hog,pixels" if name == "sweep" else "lr=1e-3"


def pair(name: str, text: str) -> tuple[str, str]:
    """`SETTING=VALUE` apart, dashes in the setting's name as underscores.

    Raises:
        RequestError: there is no such pair.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise RequestError(f"{name} is {text!r}; expected SETTING=VALUE, such as {_example(name)}")
    return key.strip().replace("-", "_"), value.strip()


def parse_value(text: str) -> Any:
    """`none` as no value, lists and mappings and truth values as YAML has them, anything else as it is written."""
    text = text.strip()
    if text == "none":
        return None
    # Not all of it: to YAML, a stage such as 16:1 is sixteen minutes and one second.
    return yaml.safe_load(text) if text[0] in "[{" or text in ("true", "false") else text
