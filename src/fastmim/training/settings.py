"""Settings shared by all training runs; does not import torch.

No `from __future__ import annotations` here: cyclopts evaluates inherited annotations that are text in the module of
the subclass, which does not import these names.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastmim.config import check_bad_share, check_positive, check_workers
from fastmim.data.settings import ImageConfig
from fastmim.errors import RequestError, shown
from fastmim.training import schedule


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ImageConfig):
    """Data, batch, length, optimiser, device and bookkeeping of a training run."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset(
        {
            "num_workers",
            "device",
            "devices",
            "shard",
            "compile",
            "micro_batch",
            "checkpoint_activations",
            "save_every",
            "keep_every",
            "log_every",
            "trackers",
            "report",
            "max_bad_share",
            "max_pixels",
            "out",
            "data",  # if it holds the same images: see `Task.check_resumable`
        }
    )

    DEFAULT_EPOCHS: ClassVar[float] = 200.0
    """The length of a run that gives neither epochs nor steps; see `epochs`."""

    data: str = "samples"
    """Images: a directory (any depth), a pack, .tar shards ('shards/{000..127}.tar'), a .txt/.csv list of paths,
    hf://OWNER/NAME, torchvision://NAME, or `samples` (built in)."""

    out: Path = Path("runs/pretrain")
    """Run directory. The same command with the same directory resumes; --config takes its config.yaml."""

    epochs: float | None = None
    """Passes over the data. A larger number trains the run in --out longer; the learning rate then follows the
    schedule of the new length. [default: 200, unless --steps is given]"""

    steps: int | None = None
    """Optimiser steps, instead of --epochs."""

    batch_size: int = 256
    """Images per optimiser step, over all devices; --micro-batch limits how many a device takes at once.
    The default is lowered to the number of images if there are fewer."""

    micro_batch: int | Literal["auto"] | None = None
    """Most images that a device takes at once, at the first stage's size; gradients of the rest are accumulated. `auto`
    finds the largest that fits on a CUDA device. [default: all]"""

    checkpoint_activations: bool = False
    """Store only each block's input for the backward pass and recompute the rest: less memory, a third slower."""

    lr: float = 1.5e-4
    """Learning rate per 256 images: the peak is lr * batch_size / 256."""

    warmup: str = "5%"
    """Linear warm-up: `20 epochs`, `1000 steps`, `1e6 images` or `5%` of the run; then decay to 0."""

    lr_decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls to 0: in half a cosine after the warm-up, or in a line from the first step on (the
    `poly` schedule of power 1)."""

    lr_drop: str | None = None
    """When the learning rate falls to a tenth, in place of --lr-decay: `700 epochs`, `87.5%`. [default: never]"""

    weight_decay: float = 0.05
    """AdamW weight decay, not applied to biases, norms, tokens and position embeddings."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW betas."""

    clip: float | None = None
    """Maximum gradient norm; larger gradients are scaled down to it. [default: no clipping]"""

    shuffle: Literal["full", "blocks"] = "full"
    """Order of the images in an epoch: `full` mixes all of them; `blocks` reads runs of 8,192 neighbours together, in
    mixed order, for slow or remote disks: neighbours should be no more alike than other images."""

    seed: int = 0
    """Decides everything random: weights, order, crops, masks, drop path."""

    num_workers: int | None = None
    """Worker processes that load data; 0 loads in the main process. [default: one fewer than cores, at most 16]"""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the accelerator, if any."""

    devices: int | Literal["all"] | None = None
    """Devices of this machine to train on, with a process for each. [default: all GPUs; 1 on a CPU and from Python]"""

    shard: bool = False
    """Divide weights, gradients and moments among the processes (FSDP2), for models that do not fit on one device.
    Not every model can be divided, and one process alone has nothing to divide."""

    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Precision of the forward pass; `auto` is bf16 where the device multiplies it fast, else float32."""

    compile: bool | None = None
    """Compile the training step with torch.compile. [default: yes on CUDA, no elsewhere]"""

    cuda_graphs: bool = False
    """Replay the kernels of the compiled step from a recording instead of launching them one by one, so that a small
    model need not wait for the processor; for one process on CUDA. Steps of several micro-batches are launched."""

    save_every: int = 500
    """Steps between checkpoints. Training waits only for a copy to host memory, 12 bytes a parameter."""

    keep_every: int | None = None
    """Keep all checkpoints whose step is a multiple of this, besides the last two. [default: the last two only]"""

    log_every: int = 10
    """Steps between log lines (metrics.jsonl, console, trackers)."""

    trackers: str = "auto"
    """Comma-separated tensorboard, wandb, mlflow; `none`; or `auto`: tensorboard if installed."""

    report: Literal["auto", "never"] = "auto"
    """Write report.html into the run directory, as training goes on and at its end; see `fastmim report`."""

    max_bad_share: float = 0.05
    """Stop when more than this share of the images cannot be read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "batch_size", "micro_batch", "devices", "steps", "save_every", "keep_every", "log_every")
        check_positive(self, "epochs", "lr", "clip")
        check_workers(self.num_workers)
        check_bad_share(self.max_bad_share)
        if self.shard and self.micro_batch == "auto":
            raise RequestError(
                "micro_batch is 'auto' with shard, whose memory no trial can tell; expected a number: --micro-batch 32"
            )
        if self.epochs is not None and self.steps is not None:
            raise RequestError(
                f"epochs is {self.epochs:g} and steps is {self.steps}; expected one of them: drop the other"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise RequestError(f"betas is {self.betas}; expected two numbers of at least 0 and less than 1: 0.9 0.95")
        if not 0 <= self.weight_decay < math.inf:
            raise RequestError(f"weight_decay is {self.weight_decay}; expected 0 (none) or more, such as 0.05")
        for name in self.tracker_names():
            if name not in ("tensorboard", "wandb", "mlflow"):
                raise RequestError(f"trackers names {name!r}; expected tensorboard, wandb, mlflow, none or auto")
        check_duration("warmup", self.warmup)
        if self.lr_drop is not None:
            check_duration("lr_drop", self.lr_drop)

    @property
    def images_per_step(self) -> int:
        """Images that a step reads: the batch, unless it holds several copies of each."""
        return self.batch_size

    def tracker_names(self) -> tuple[str, ...]:
        """Return the trackers that are named, none for `auto`."""
        if self.trackers in ("auto", "none"):
            return ()
        return tuple(name.strip() for name in self.trackers.split(","))


@dataclass(frozen=True, kw_only=True)
class CropConfig(TrainConfig):
    """A training run on random crops of images."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a random crop covers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise RequestError(
                f"crop_scale is {self.crop_scale}; expected 0 < smallest <= largest <= 1, such as 0.2 1.0"
            )


def check_duration(name: str, value: str) -> None:
    """Raise RequestError unless `value` is a duration such as `20 epochs` or `5%`."""
    try:
        schedule.to_steps(value, total_steps=1, steps_per_epoch=1, batch_size=1)
    except ValueError as error:
        raise RequestError(f"{name} is {shown(value)}; {error}") from None
