"""What a run is: frozen dataclasses whose fields, defaults and docs are the CLI, the YAML file and the API.

A field is written once. The command line takes its flags and help from it, `config.yaml` its keys, and
`fastmim.pretrain` its keyword arguments. Checks live in `__post_init__`, and a message always states the
value, what was expected and the remedy. No torch here: `fastmim --help` must be instant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from fastmim import schedule

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class RequestError(ValueError):
    """The request is wrong: one line with the value, what was expected, the remedy. Exit status 2."""


class RunError(RuntimeError):
    """The run failed for a reason that the user can act on, in one line. Exit status 1."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training run has: data, batch, length, optimiser, device, bookkeeping."""

    data: str = "samples"
    """Images: a directory (any depth), a pack, .tar shards ('shards/{000..127}.tar'), a .txt/.csv list of paths,
    hf://OWNER/NAME, torchvision://NAME, or `samples` (built in)."""

    out: Path = Path("runs/pretrain")
    """Run directory. The same command with the same directory resumes."""

    epochs: float | None = None
    """Passes over the data. [default: 200, unless --steps is given]"""

    steps: int | None = None
    """Optimiser steps, instead of --epochs."""

    batch_size: int = 256
    """Images per optimiser step, over all devices. What a device takes at once is --micro-batch."""

    micro_batch: int | Literal["auto"] | None = None
    """Most images that a device takes at once, at the first stage's size; the rest is accumulated. `auto` tries what
    fits on a CUDA device. [default: all]"""

    checkpoint_activations: bool = False
    """Keep each block's input only for the backward pass and compute the rest again: less memory, a third slower."""

    lr: float = 1.5e-4
    """Learning rate per 256 images: the peak is lr * batch_size / 256."""

    warmup: str = "5%"
    """Linear warm-up: `20 epochs`, `1000 steps`, `1e6 images` or `5%` of the run. Cosine to 0 follows."""

    weight_decay: float = 0.05
    """AdamW weight decay, not applied to biases, norms, tokens and position embeddings."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW betas."""

    clip: float | None = None
    """Largest gradient norm; larger gradients are scaled down to it. [default: no clipping]"""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area in a random crop."""

    seed: int = 0
    """Everything random (weights, order, crops, masks, drop path) is a function of it."""

    num_workers: int | None = None
    """Data processes; 0 loads in the training process. [default: one per core but one, at most 16]"""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the accelerator if there is one."""

    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Arithmetic of the forward pass; `auto` is bf16 where the accelerator has it, else float32."""

    compile: bool | None = None
    """Compile the training step with torch.compile. [default: yes on CUDA, no elsewhere]"""

    save_every: int = 500
    """Steps between checkpoints."""

    keep_every: int | None = None
    """Keep every checkpoint whose step is a multiple of this; of the others only the last two stay."""

    log_every: int = 10
    """Steps between log lines (metrics.jsonl, console, trackers)."""

    trackers: str = "auto"
    """Comma list of tensorboard, wandb, mlflow; `none`; `auto` is tensorboard if installed."""

    max_bad_share: float = 0.05
    """Stop when more than this share of the images cannot be read."""

    def __post_init__(self) -> None:
        at_least_one = ("batch_size", "micro_batch", "steps", "save_every", "keep_every", "log_every")
        for name in at_least_one:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise RequestError(f"{name} is {value}; expected at least 1")
        for name in ("epochs", "lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RequestError(f"{name} is {value}; expected more than 0")
        if self.epochs is not None and self.steps is not None:
            raise RequestError(
                f"epochs is {self.epochs:g} and steps is {self.steps}; expected one of them: drop the other"
            )
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise RequestError(
                f"crop_scale is {self.crop_scale}; expected 0 < smallest <= largest <= 1, such as 0.2 1.0"
            )
        if self.num_workers is not None and self.num_workers < 0:
            raise RequestError(f"num_workers is {self.num_workers}; expected 0 (load in the training process) or more")
        for name in self.tracker_names():
            if name not in ("tensorboard", "wandb", "mlflow"):
                raise RequestError(f"trackers names {name!r}; expected tensorboard, wandb, mlflow, none or auto")
        check_duration("warmup", self.warmup)

    def tracker_names(self) -> tuple[str, ...]:
        """The trackers asked for by name (none of them for `auto`)."""
        if self.trackers in ("auto", "none"):
            return ()
        return tuple(name.strip() for name in self.trackers.split(","))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Masked image modeling: which backbone, at which sizes, what is hidden and what is predicted."""

    recipe: str | None = None
    """Start from a published recipe's settings, such as `vit-b`; flags override it. `fastmim recipes` lists them."""

    backbone: str = "vit_small_patch16_224"
    """Any timm model: see `fastmim backbones`."""

    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Arguments for timm.create_model, such as --backbone-args.depth 4."""

    init: str | None = None
    """Start the backbone from these weights: a run directory, a weights file, or `timm` (timm's own)."""

    img_size: int = 128
    """Side of the training crops in pixels."""

    stages: str | None = None
    """Resolutions with their shares of the run (FastMIM-P), such as 128:0.5,160:0.3,192:0.2; replaces --img-size."""

    target: Literal["hog", "pixels", "rgb"] = "hog"
    """What is predicted for the hidden blocks: edge orientations, pixels standardised per patch, or plain pixels."""

    masking: Literal["in-place", "drop"] = "in-place"
    """Paint hidden blocks over, or drop their tokens (a plain ViT only: it then encodes a quarter of them)."""

    mask_ratio: float = 0.75
    """Share of the blocks that are hidden."""

    block: int | None = None
    """Side of a hidden block in pixels. [default: the backbone's stride; more for small strides]"""

    decoder: str = "auto"
    """Decoder as WIDTHxDEPTH, such as 256x4, or `linear`; `auto` goes by the encoder's width and stride."""

    loss: Literal["l2", "l1"] = "l2"
    """Squared or absolute error of the hidden cells."""

    encoder_depth: float = 1.0
    """Share of the backbone's blocks that are pre-trained, from the input on."""

    picture_every: str = "10%"
    """How often a reconstruction picture is drawn: `500 steps`, `10 epochs`, `10%`, or `never`."""

    probe: str | None = None
    """Labelled images to probe with during the run: held-out MIM loss (it follows fine-tuning accuracy well, see
    arXiv 2206.04664), kNN (low by nature for MIM: see whether it rises) and effective rank of the features."""

    probe_every: str = "10%"
    """How often --probe is measured: `500 steps`, `10 epochs` or `10%`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise RequestError(f"mask_ratio is {self.mask_ratio}; expected between 0 and 1, such as 0.75")
        if not 0 < self.encoder_depth <= 1:
            raise RequestError(
                f"encoder_depth is {self.encoder_depth}; expected more than 0 and at most 1, such as 0.75"
            )
        for name in ("img_size", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}; expected a number of pixels")
        self.decoder_size()
        if self.picture_every != "never":
            check_duration("picture_every", self.picture_every)
        check_duration("probe_every", self.probe_every)
        self.sizes()

    def sizes(self) -> tuple[tuple[int, float], ...]:
        """The stages as (image size, share of the run), shares summing to 1."""
        if self.stages is None:
            return ((self.img_size, 1.0),)
        try:
            return schedule.parse_stages(self.stages)
        except ValueError as error:
            raise RequestError(f"stages is {self.stages!r}; {error}") from None

    def decoder_size(self) -> tuple[int, int] | Literal["auto", "linear"]:
        """(width, depth) of the decoder, or the word that stands for one."""
        if self.decoder == "auto":
            return "auto"
        if self.decoder == "linear":
            return "linear"
        width, _, depth = self.decoder.partition("x")
        if not (width.isdigit() and depth.isdigit() and int(width) >= 32 and int(width) % 32 == 0):
            raise RequestError(
                f"decoder is {self.decoder!r}; expected auto, linear or WIDTHxDEPTH, WIDTH a multiple of 32, "
                f"such as 256x4"
            )
        return int(width), int(depth)


# What may change when a run goes on: it decides where and how often, never what is learnt.
RESUMABLE = frozenset(
    {
        "num_workers",
        "device",
        "compile",
        "micro_batch",
        "checkpoint_activations",
        "save_every",
        "keep_every",
        "log_every",
        "trackers",
        "picture_every",
        "probe",
        "probe_every",
    }
    | {"max_bad_share", "out"}
)

Config = TypeVar("Config", bound=Any)  # any of the frozen dataclasses of settings


def check_duration(name: str, value: str) -> None:
    """Raise RequestError unless `value` is a duration such as `20 epochs` or `5%`."""
    try:
        schedule.to_steps(value, total_steps=1, steps_per_epoch=1, batch_size=1)
    except ValueError as error:
        raise RequestError(f"{name} is {value!r}; {error}") from None


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """', did you mean X?' where some known word is near, else ''."""
    close = difflib.get_close_matches(word, list(words), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def build(cls: type[Config], *layers: Mapping[str, Any]) -> Config:
    """A config from mappings, later ones overriding earlier ones.

    Raises:
        RequestError: an unknown key (the nearest real one is named) or a value of the wrong type.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
        # A length given later replaces one given earlier in the other unit.
        for length, other in (("epochs", "steps"), ("steps", "epochs")):
            if layer.get(length) is not None and layer.get(other) is None:
                merged[other] = None
    hints = typing.get_type_hints(cls)
    for key in merged:
        if key not in hints:
            raise RequestError(f"unknown setting {key!r}{nearest(key, hints) or '; see --help for the settings'}")
    return cls(**{key: _coerce(key, value, hints[key]) for key, value in merged.items()})


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """A YAML or Python value as the field's type, or a RequestError naming the field."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        *others, hint = (option for option in typing.get_args(hint) if option is not type(None))
        for option in others:
            with contextlib.suppress(RequestError):
                return _coerce(key, value, option)
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        expected = " or ".join(str(arg) for arg in args)
    else:
        expected = hint.__name__ if isinstance(hint, type) else str(hint)
    try:
        if origin is Literal and value in args:
            return value
        if origin is tuple and not isinstance(value, str) and len(value) == len(args):
            return tuple(_coerce(key, item, arg) for item, arg in zip(value, args, strict=True))
        if origin is dict and isinstance(value, Mapping):
            # Python's names have underscores; on the command line people write dashes.
            return {k.replace("-", "_"): yaml.safe_load(v) if isinstance(v, str) else v for k, v in value.items()}
        if origin is bool and isinstance(value, bool):
            return value
        if origin is int and not isinstance(value, bool) and int(value) == float(value):
            return int(value)
        if origin is float and not isinstance(value, bool):
            return float(value)
        if origin in (str, Path) and isinstance(value, str | int | float | Path):
            return origin(value)
    except (TypeError, ValueError, yaml.YAMLError):
        pass
    raise RequestError(f"{key} is {value!r}; expected {expected}")


def to_mapping(config: Any) -> dict[str, Any]:
    """The config as plain YAML types."""
    plain = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def to_yaml(config: TrainConfig) -> str:
    """The config as `config.yaml` has it."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def read(path: Path) -> dict[str, Any]:
    """The settings in a YAML file (a run's own `config.yaml` will do; its `versions` are not settings).

    Raises:
        RequestError: no such file, or not a mapping.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RequestError(f"config is {path}: {error.strerror}; expected a YAML file of settings") from None
    except yaml.YAMLError as error:
        raise RequestError(f"config is {path}, which is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise RequestError(f"config is {path}; expected `setting: value` lines, such as `epochs: 200`")
    settings.pop("versions", None)
    return settings


def differences(stored: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """What a stored run's settings and `config` disagree on, leaving out what may change on resuming."""
    now = to_mapping(config)
    keys = [key for key in now if key not in RESUMABLE and stored.get(key, now[key]) != now[key]]
    return [f"{key} {stored[key]!r} -> {now[key]!r}" for key in keys]
