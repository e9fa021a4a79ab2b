"""What predictions of a trained detector or segmenter share: opening weights and images, the folder, the last line."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from rich.console import Console

from fastmim.data.bad_images import BadImages
from fastmim.data.sources import Source, open_source
from fastmim.errors import RequestError, listed
from fastmim.system import devices
from fastmim.system.display import say
from fastmim.system.files import exists
from fastmim.transfer.dense_file import Format, Opened
from fastmim.transfer.dense_settings import DenseConfig

Net = TypeVar("Net", bound=torch.nn.Module)
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Request:
    """Images to predict for, and what to predict with."""

    config: DenseConfig
    source: Source
    console: Console

    def inference_settings(self, opened: Opened[Any, Any]) -> dict[str, Any]:
        """Arguments of an `Inference`: image size, normalisation, precision, workers."""
        device = devices.resolve_device(self.config.device)
        return {
            "size": opened.design.img_size,
            "mean": torch.tensor(opened.mean, device=device),
            "std": torch.tensor(opened.std, device=device),
            "bf16": devices.resolve_bf16(self.config.precision, device),
            "num_workers": devices.resolve_workers(self.config.num_workers),
        }

    @contextmanager
    def writing(self) -> Generator[BadImages]:
        """Make the folder, and tell what cannot be written in one line; gives the list of unreadable images."""
        out = self.config.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            yield BadImages(out, num_images=len(self.source), max_share=self.config.max_bad_share)
        except OSError as error:
            raise RequestError(
                f"out is {out}: {error.strerror or error}; expected a folder that can be written"
            ) from error

    def say_written(self, what: str, bad_images: BadImages) -> None:
        """The closing line."""
        left_out = f"; {len(bad_images):,} unreadable, listed in {bad_images.path}" if len(bad_images) else ""
        say(self.console, f"wrote {self.config.out}: {what}{left_out}")


def request(
    config: DenseConfig, images: str, kept: Format[Net, Any], *, overwrite: bool, what: Callable[[Any], str]
) -> tuple[Opened[Net, Any], Request]:
    """Open the weights and the images, and say what they are.

    Args:
        config: Its weights, out, device, precision, num_workers and max_bad_share count.
        images: Anything that `open_source` takes.
        kept: How such a network is stored.
        overwrite: Write to `out` although it exists.
        what: Says more of a design, for the line on the weights.

    Raises:
        RequestError: the weights hold no such network, there are no images, or `out` exists.
    """
    if exists(config.out) and not (overwrite and config.out.is_dir()):
        raise RequestError(
            f"out is {config.out}, which exists; expected a new folder for the predictions: take another, or add "
            f"--overwrite"
        )
    opened = kept.load(config.weights)
    source = open_source(images, config, inherited=opened.range)
    console, design = Console(highlight=False), opened.design
    lines = [
        f"weights   {config.weights}: {opened.trunk.name}, {len(design.classes)} classes "
        f"({listed(design.classes, 5)}){what(design)}",
        f"images    {images}: {len(source):,}, at {design.img_size} px",
        *source.remarks,
    ]
    say(console, "\n".join(lines))
    return opened, Request(config, source, console)
