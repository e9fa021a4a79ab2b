"""Predictions of a trained detector: a file in COCO's format, and a picture of each image, in a new folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastmim.data.bad_images import BadImages
from fastmim.data.sources import Source, open_source
from fastmim.errors import RequestError, listed
from fastmim.system import devices
from fastmim.system.display import say
from fastmim.system.files import exists, replacing, write_json
from fastmim.system.progress import progress
from fastmim.transfer.detect import file
from fastmim.transfer.detect.evaluation import Inference
from fastmim.transfer.detect.pictures import SURE, draw
from fastmim.transfer.detect.settings import DetectConfig

_RESULTS = "predictions.json"


@dataclass(frozen=True)
class Predicted:
    """What `detect` wrote."""

    out: Path
    num_images: int
    """Images that could be read."""
    num_objects: int
    finished: bool = True


def predict(config: DetectConfig, images: str, *, overwrite: bool, dry_run: bool) -> Predicted:
    """Find objects in images: `out`/predictions.json, and pictures of those of a score of 0.5 or more.

    The file has COCO's "images", "annotations" (each with a "score", boxes and masks in pixels of the image) and
    "categories", with the numbers that the classes had in training. An unreadable image is skipped, and listed in
    bad_images.txt.

    Args:
        config: Its weights, out, device, precision, num_workers and max_bad_share count.
        images: Anything that `open_source` takes.
        overwrite: Write to `out` although it exists.
        dry_run: Print what would be done, and stop.

    Raises:
        RequestError: the weights hold no detector, there are no images, or `out` exists or cannot be written.
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
    lines = [
        f"weights   {config.weights}: {opened.detector.trunk.name}, {len(design.classes)} classes "
        f"({listed(design.classes, 5)}), {'boxes and masks' if design.masks else 'boxes'}",
        f"images    {images}: {len(source):,}, at {design.img_size} px",
        *source.remarks,
    ]
    say(console, "\n".join(lines))
    if dry_run:
        return Predicted(config.out, 0, 0)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        return _write(config, opened, source, console)
    except OSError as error:
        raise RequestError(
            f"out is {config.out}: {error.strerror or error}; expected a folder that can be written"
        ) from error


def _write(config: DetectConfig, opened: file.Opened, source: Source, console: Console) -> Predicted:
    design, device = opened.design, devices.resolve_device(config.device)
    inference = Inference(
        size=design.img_size,
        mean=torch.tensor(opened.mean, device=device),
        std=torch.tensor(opened.std, device=device),
        bf16=devices.resolve_bf16(config.precision, device),
        num_workers=devices.resolve_workers(config.num_workers),
    )
    bad_images = BadImages(config.out, num_images=len(source), max_share=config.max_bad_share)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with progress(console, total=len(source)) as show:
        for found, batch in inference.predict(opened.detector.to(device), source):
            index = batch["index"]
            bad_images.update(batch["bad"], num_seen=1)
            show(index + 1)
            if found is None:
                continue
            height, width = batch["size"]
            path = config.out / "pictures" / f"{index:08d}.png"
            entries.append(
                {"id": index, "file_name": source.name(index), "height": height, "width": width, "picture": path.name}
            )
            for item in found:
                entry = item.to_coco(index, design.categories)
                annotations.append(
                    entry | {"id": len(annotations) + 1, "area": item.box[2] * item.box[3], "iscrowd": 0}
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            sure = [item for item in found if item.score >= SURE]
            picture = draw(batch["image"].permute(1, 2, 0).numpy(), batch["size"], sure, design.classes)
            with replacing(path) as partial:
                picture.save(partial, format="PNG")
    named = zip(design.categories, design.classes, strict=True)
    categories = [{"id": number, "name": name} for number, name in named]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    write_json(config.out / _RESULTS, content, indent=None)
    left_out = f"; {len(bad_images):,} unreadable, listed in {bad_images.path}" if len(bad_images) else ""
    say(console, f"wrote {config.out}: {len(annotations):,} objects in {len(entries):,} images{left_out}")
    return Predicted(config.out, len(entries), len(annotations))
