"""Settings of every training run; does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastmim.errors import RequestError
from fastmim.training import schedule


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training run has: data, batch, length, optimiser, device, bookkeeping."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset(
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
            "max_bad_share",
            "out",
        }
    )
    """Settings that may change when a run resumes: they decide where and how often, never what is learnt."""

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


def check_duration(name: str, value: str) -> None:
    """Raise RequestError unless `value` is a duration such as `20 epochs` or `5%`."""
    try:
        schedule.to_steps(value, total_steps=1, steps_per_epoch=1, batch_size=1)
    except ValueError as error:
        raise RequestError(f"{name} is {value!r}; {error}") from None
