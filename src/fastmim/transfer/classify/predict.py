"""Predictions of a fine-tuned classifier: the most probable classes of each image of a source, in a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from fastmim import config as configs
from fastmim.backbone.maps import resample
from fastmim.config import takes
from fastmim.data.bad_images import BadImages
from fastmim.data.sources import Source, objects, open_source
from fastmim.errors import RequestError
from fastmim.system import devices
from fastmim.system.display import say
from fastmim.system.files import exists
from fastmim.system.progress import progress
from fastmim.transfer.classify.evaluation import TOP, classify
from fastmim.transfer.classify.predict_settings import PredictConfig
from fastmim.transfer.classify.prediction_file import open_file
from fastmim.weights import export, files
from fastmim.weights.metadata import crop_pct

_NUM_NAMED = 5


@dataclass(frozen=True)
class Predicted:
    """What `predict` wrote."""

    out: Path
    num_images: int
    num_rows: int
    """Readable images, each of which is a row of the file."""


class Trained(nn.Module):
    """A fine-tuned classifier from a weights file, for images as in its validation.

    Args:
        source: A fine-tuning run, or a weights file with a classifier.

    Raises:
        RequestError: there are no such weights, or they have no classifier.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        tensors, facts = files.read(source)
        self.classes: list[str] = facts.get("classes") or []
        if not self.classes:
            raise RequestError(
                f"weights is {source}, a backbone without a classifier; expected a fine-tuning run or its weights: "
                f"train one with `fastmim finetune`"
            )
        self.model: Any = files.build(source, tensors, facts, classifier=True)
        if self.model.num_classes != len(self.classes):
            raise RequestError(
                f"weights is {source}, which names {len(self.classes)} classes and has {self.model.num_classes}; "
                f"expected a name for each: take a file that fastmim wrote"
            )
        self.name, self.img_size, self.crop_pct = str(facts["architecture"]), int(facts["img_size"]), crop_pct(facts)
        self.range: str | None = facts.get("range")
        self.input_size = files.validated_size(self.model, facts)
        self.mean, self.std = (torch.tensor(values) for values in export.normalisation(facts).values())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images, S = `img_size` -> (B, number of classes) logits."""
        return self.model(resample(images, self.input_size))


@takes(PredictConfig)
def predict(*, overwrite: bool = False, dry_run: bool = False, **settings: Any) -> Predicted:
    """Classify images with a fine-tuned classifier, cropped and resized as in its validation.

    The file has a row for each image, in the source's order: `path`, `class` and `probability` of the most probable
    class, then `class_2`, `probability_2` to `class_5`, `probability_5` (fewer if there are fewer classes). A .csv is
    in UTF-8. An unreadable image has no row; it is listed in a file of the same name ending in .bad_images.txt.
    The file appears whole or not at all.

    Args:
        overwrite: Replace `out`.
        dry_run: Print what would be done, and stop.
        settings: Fields of `PredictConfig` (`fastmim predict --help` lists them).

    Raises:
        RequestError: the request is wrong, or `out` exists or cannot be written.
        RunError: too many unreadable images.

    Example:
        >>> predicted = fastmim.predict(weights="runs/tuned", data="photos/", out="predictions.csv")
    """
    config = configs.build(PredictConfig, objects.named(settings, PredictConfig))
    console = Console(highlight=False)
    if config.weights is None:
        raise RequestError("weights are not given; expected a fine-tuning run: --weights runs/finetune")
    if config.data is None:
        raise RequestError("data is not given; expected images: --data photos/")
    if config.out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise RequestError(
            f"out is {config.out}, but pyarrow is not installed; run: pip install 'fastmim[embed]', or take a .csv"
        )
    if exists(config.out) and not (overwrite and config.out.is_file()):
        remedy = "take another" if config.out.is_dir() else "take another, or add --overwrite"
        raise RequestError(f"out is {config.out}, which exists; expected a new file: {remedy}")
    trained = Trained(config.weights)
    source = open_source(config.data, config, inherited=trained.range)
    notes = devices.precision_notes(config.precision, devices.resolve_device(config.device))
    say(
        console,
        f"weights   {config.weights}: {trained.name}, {len(trained.classes)} classes\n"
        f"images    {trained.img_size} px, the central {100 * trained.crop_pct:g} % of the shorter side\n"
        + "\n".join([f"data      {config.data}: {len(source):,} images", *source.remarks, *notes]),
    )
    if dry_run:
        return Predicted(config.out, len(source), 0)
    try:
        config.out.absolute().parent.mkdir(parents=True, exist_ok=True)
        return _write(config, trained, source, console)
    except OSError as error:
        raise RequestError(
            f"out is {config.out}: {error.strerror or error}; expected a file that can be written"
        ) from error


def _write(config: PredictConfig, trained: Trained, source: Source, console: Console) -> Predicted:
    """Classify all images and write the file."""
    listed = config.out.with_suffix(".bad_images.txt")
    listed.unlink(missing_ok=True)
    bad_images = BadImages(listed.parent, name=listed.name, num_images=len(source), max_share=config.max_bad_share)
    device, classes, counts = devices.resolve_device(config.device), trained.classes, Counter[str]()
    top = min(TOP, len(classes))
    batches = classify(
        trained.to(device),
        source,
        size=trained.img_size,
        mean=trained.mean.to(device),
        std=trained.std.to(device),
        batch_size=config.batch_size,
        num_workers=devices.resolve_workers(config.num_workers),
        bf16=devices.resolve_bf16(config.precision, device),
        crop_pct=trained.crop_pct,
    )
    num_read = 0
    with open_file(config.out, top) as file, progress(console, total=len(source)) as show:
        for logits, batch in batches:
            if len(logits):
                best = logits.softmax(dim=1).topk(top, dim=1)  # (b, top)
                names = [[classes[number] for number in row] for row in best.indices.tolist()]
                file.append([source.name(index) for index in batch["indices"].tolist()], names, best.values.tolist())
                counts.update(row[0] for row in names)
            num_seen = len(logits) + len(batch["bad"])
            bad_images.update(batch["bad"], num_seen=num_seen)
            num_read += num_seen
            show(num_read)
    common = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(_NUM_NAMED))
    left_out = f"; {len(bad_images):,} unreadable, listed in {listed}" if len(bad_images) else ""
    say(console, f"wrote {config.out}: {counts.total():,} images{f' ({common})' if common else ''}{left_out}")
    return Predicted(config.out, len(source), counts.total())
