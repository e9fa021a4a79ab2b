"""Predictions of a trained detector: a file in COCO's format, and a picture of each image, in a new folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmim.system.files import replacing, write_json
from fastmim.system.progress import progress
from fastmim.transfer import dense_prediction
from fastmim.transfer.dense_file import Opened
from fastmim.transfer.dense_prediction import Request
from fastmim.transfer.detect.detector import Detector
from fastmim.transfer.detect.evaluation import Inference
from fastmim.transfer.detect.file import FORMAT, Design
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
    opened, request = dense_prediction.request(
        config,
        images,
        FORMAT,
        overwrite=overwrite,
        what=lambda design: ", boxes and masks" if design.masks else ", boxes",
    )
    return Predicted(config.out, 0, 0) if dry_run else _write(opened, request)


def _write(opened: Opened[Detector, Design], request: Request) -> Predicted:
    design, source, out = opened.design, request.source, request.config.out
    inference = Inference(**request.inference_settings(opened))
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with request.writing() as bad_images, progress(request.console, total=len(source)) as show:
        for found, batch in inference.predict(opened.network.to(inference.mean.device), source):
            index = batch["index"]
            bad_images.update(batch["bad"], num_seen=1)
            show(index + 1)
            if found is None:
                continue
            height, width = batch["size"]
            path = out / "pictures" / f"{index:08d}.png"
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
        write_json(out / _RESULTS, content, indent=None)
    request.say_written(f"{len(annotations):,} objects in {len(entries):,} images", bad_images)
    return Predicted(out, len(entries), len(annotations))
