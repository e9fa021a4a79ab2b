"""Predictions of a trained segmenter: a label image and a picture of each image, in a new folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from fastmim.data.bad_images import BadImages
from fastmim.data.label_crops import resize_labels
from fastmim.data.sources import Source, open_source
from fastmim.errors import RequestError, listed
from fastmim.system import devices
from fastmim.system.display import say
from fastmim.system.files import exists, replacing
from fastmim.system.progress import progress
from fastmim.transfer.segment import file
from fastmim.transfer.segment.evaluation import Inference
from fastmim.transfer.segment.pictures import label_image, overlay
from fastmim.transfer.segment.settings import SegmentConfig


@dataclass(frozen=True)
class Predicted:
    """What `segment` wrote."""

    out: Path
    num_images: int
    """Images that could be read."""
    finished: bool = True


def predict(config: SegmentConfig, images: str, *, overwrite: bool, dry_run: bool) -> Predicted:
    """Segment images: label images of their own size in `out`/labels, and pictures in `out`/pictures.

    Label images number the classes as those of the training did. An unreadable image is skipped, and listed in
    bad_images.txt.

    Args:
        config: Its weights, out, device, precision, num_workers and max_bad_share count.
        images: Anything that `open_source` takes.
        overwrite: Write to `out` although it exists.
        dry_run: Print what would be done, and stop.

    Raises:
        RequestError: the weights hold no segmenter, there are no images, or `out` exists or cannot be written.
        RunError: too many unreadable images.
    """
    if exists(config.out) and not (overwrite and config.out.is_dir()):
        raise RequestError(
            f"out is {config.out}, which exists; expected a new folder for the predictions: take another, or add "
            f"--overwrite"
        )
    opened = file.load(config.weights)
    source = open_source(images, config, inherited=opened.range)
    console, design = Console(highlight=False), opened.design
    say(
        console,
        f"weights   {config.weights}: {opened.segmenter.trunk.name}, {len(design.classes)} classes "
        f"({listed(design.classes, 5)})\n"
        + "\n".join([f"images    {images}: {len(source):,}, at {design.img_size} px", *source.remarks]),
    )
    if dry_run:
        return Predicted(config.out, 0)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        return _write(config, opened, source, console)
    except OSError as error:
        raise RequestError(
            f"out is {config.out}: {error.strerror or error}; expected a folder that can be written"
        ) from error


def _write(config: SegmentConfig, opened: file.Opened, source: Source, console: Console) -> Predicted:
    design, device = opened.design, devices.resolve_device(config.device)
    inference = Inference(
        size=design.img_size,
        stride=design.test_stride if design.test == "slide" else None,
        mean=torch.tensor(opened.mean, device=device),
        std=torch.tensor(opened.std, device=device),
        bf16=devices.resolve_bf16(config.precision, device),
        num_workers=devices.resolve_workers(config.num_workers),
    )
    bad_images = BadImages(config.out, num_images=len(source), max_share=config.max_bad_share)
    num_classes, num_read, num_seen = len(design.classes), 0, 0
    taken: set[Path] = set()
    with progress(console, total=len(source)) as show:
        for predicted, batch in inference.predict(opened.segmenter.to(device), source):
            bad_images.update(batch["bad"], num_seen=1)
            num_seen += 1
            show(num_seen)
            if predicted is None:
                continue
            num_read += 1
            classes = predicted.cpu().numpy()
            pixels = batch["image"].permute(1, 2, 0).numpy()
            seen = resize_labels(classes, (pixels.shape[0], pixels.shape[1])).astype(np.int64)
            name = _file_name(source, batch["index"], taken)
            for folder, image in (
                ("labels", label_image(classes + design.first, design.first, num_classes)),
                ("pictures", overlay(pixels, seen, num_classes)),
            ):
                path = config.out / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as partial:
                    image.save(partial, format="PNG")
    left_out = f"; {len(bad_images):,} unreadable, listed in {bad_images.path}" if len(bad_images) else ""
    say(console, f"wrote {config.out}: label images and pictures of {num_read:,} images{left_out}")
    return Predicted(config.out, num_read)


def _file_name(source: Source, index: int, taken: set[Path]) -> Path:
    """The image's path within its source, as a PNG; its number if it has none, or that name is taken."""
    path, numbered = Path(source.name(index)), Path(f"{index:08d}.png")
    within = source.root is not None and path.is_relative_to(source.root)
    name = path.relative_to(source.root or "").with_suffix(".png") if within else numbered
    name = numbered if name in taken or ".." in name.parts else name
    taken.add(name)
    return name
