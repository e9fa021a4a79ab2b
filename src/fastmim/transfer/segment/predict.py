"""Predictions of a trained segmenter: a label image and a picture of each image, in a new folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmim.data.label_crops import resize_labels
from fastmim.data.sources import Source
from fastmim.system.files import replacing
from fastmim.system.progress import progress
from fastmim.transfer import dense_prediction
from fastmim.transfer.dense_file import Opened
from fastmim.transfer.dense_prediction import Request
from fastmim.transfer.segment.evaluation import Inference
from fastmim.transfer.segment.file import FORMAT, Design
from fastmim.transfer.segment.pictures import label_image, overlay
from fastmim.transfer.segment.segmenter import Segmenter
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
    opened, request = dense_prediction.request(config, images, FORMAT, overwrite=overwrite, what=lambda design: "")
    return Predicted(config.out, 0) if dry_run else _write(opened, request)


def _write(opened: Opened[Segmenter, Design], request: Request) -> Predicted:
    design, source, out = opened.design, request.source, request.config.out
    stride = design.test_stride if design.test == "slide" else None
    inference = Inference(**request.inference_settings(opened), stride=stride)
    num_classes, num_read, num_seen = len(design.classes), 0, 0
    taken: set[Path] = set()
    with request.writing() as bad_images, progress(request.console, total=len(source)) as show:
        for predicted, batch in inference.predict(opened.network.to(inference.mean.device), source):
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
                path = out / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as partial:
                    image.save(partial, format="PNG")
    request.say_written(f"label images and pictures of {num_read:,} images", bad_images)
    return Predicted(out, num_read)


def _file_name(source: Source, index: int, taken: set[Path]) -> Path:
    """The image's path within its source, as a PNG; its number if it has none, or that name is taken."""
    path, numbered = Path(source.name(index)), Path(f"{index:08d}.png")
    within = source.root is not None and path.is_relative_to(source.root)
    name = path.relative_to(source.root or "").with_suffix(".png") if within else numbered
    name = numbered if name in taken or ".." in name.parts else name
    taken.add(name)
    return name
