"""`fastmim probe`: classification accuracy of frozen features, by nearest neighbours or linear heads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table

from fastmim import config as configs
from fastmim.config import takes
from fastmim.data.labelled import Labelled, limit_labels, open_labelled
from fastmim.data.sources import Source, objects
from fastmim.errors import RequestError
from fastmim.system import devices
from fastmim.system.display import say
from fastmim.system.files import exists, is_folder, write_json
from fastmim.training.sharing import Share, in_order
from fastmim.training.world import World, joined
from fastmim.transfer.features import scores
from fastmim.transfer.features.encoder import Encoder, open_encoder
from fastmim.transfer.features.extraction import Extracted, extract, gather
from fastmim.transfer.features.scores import LabelledFeatures
from fastmim.transfer.features.settings import ProbeConfig


@dataclass(frozen=True)
class Probed:
    """The result of a probe."""

    top1: float
    """Accuracy at the best k, or learning rate and weight decay, which is chosen on the same validation images."""
    effective_rank: float
    """Effective rank of the validation images' features."""
    report: dict[str, Any]
    """The content of the JSON file; empty after a dry run."""
    finished: ClassVar[bool] = True


@takes(ProbeConfig)
def probe(*, overwrite: bool = False, dry_run: bool = False, **settings: Any) -> Probed:
    """Evaluate frozen features by kNN or by a linear probe.

    After 15 % and after 50 % of the steps, the half of the linear heads (learning rates and weight decays) that is
    better on the validation images goes on; the 6 of 24 that reach the end are reported.

    kNN accuracy is inherently low for masked image modeling, since nothing in pre-training pulls images of a class
    together: compare it between runs, not with contrastive methods. Fine-tuning shows the value of the weights.

    Args:
        overwrite: Replace `out`.
        dry_run: Print the resolved settings and what would be probed, and stop.
        settings: Fields of `ProbeConfig` (`fastmim probe --help` lists them).

    Raises:
        RequestError: the request is wrong, or `out` exists.
        RunError: too many unreadable images, or published weights that cannot be downloaded.

    Example:
        >>> probed = fastmim.probe(weights="runs/photos", data="labelled/", method="knn", out="probe.json")
        >>> print(f"{probed.top1:.1%}")
    """
    config = configs.build(ProbeConfig, objects.named(settings, ProbeConfig))
    if config.data is None:
        raise RequestError("data is not given; expected labelled images: --data labelled/")
    with joined() as world:
        console = Console(highlight=False, quiet=not world.main)
        with world.together():
            world.check_devices(config.devices)
            if world.main:
                _check_writable(config.out, overwrite=overwrite)
            encoder, facts = open_encoder(config, world)
            labelled = _open(config, encoder, facts, console)
        sizes = {"the number of images": (len(labelled.train), len(labelled.val))}
        for what, value in (configs.to_mapping(config) | facts | sizes).items():
            world.check_same(what, value)
        probed = Probed(float("nan"), float("nan"), {})
        if not dry_run:
            found = {
                part: _extract(config, encoder, source, world, console, part)
                for part, source in (("train", labelled.train), ("val", labelled.val))
            }
            with world.together():  # the others wait for the scores
                if world.main:
                    probed = _report(config, encoder, facts, labelled, found, console)
        return world.exchange(probed)[0]


def _open(config: ProbeConfig, encoder: Encoder, facts: dict[str, Any], console: Console) -> Labelled:
    """The labelled images of both parts; tells of them and of the features."""
    assert config.data is not None
    named = {"inherited": encoder.grey_range, "val_data": config.val_data}
    labelled = open_labelled(config.data, config, **named, val_share=config.val_share)
    remarks = labelled.remarks
    if config.num_labels is not None:
        labelled = replace(labelled, train=limit_labels(labelled.train, config.num_labels, seed=config.seed))
    notes = devices.precision_notes(config.precision, encoder.mean.device)
    say(
        console,
        f"weights   {config.weights}: {', '.join(f'{k} {v}' for k, v in facts.items())}\n"
        f"features  {config.pool} of block {encoder.block} at {encoder.backbone.img_size} px: {encoder.width} numbers\n"
        f"data      {config.data}: {len(labelled.train):,} images train, {len(labelled.val):,} validate, "
        + "\n".join([f"{len(labelled.classes)} classes", *remarks, *notes]),
    )
    return labelled


def _report(
    config: ProbeConfig,
    encoder: Encoder,
    facts: dict[str, Any],
    labelled: Labelled,
    found: dict[str, list[Extracted]],
    console: Console,
) -> Probed:
    """Score the features, and write and print the result."""
    features, bad = {}, []
    for part, source in (("train", labelled.train), ("val", labelled.val)):
        gathered = gather(found[part], source.origin, max_bad_share=config.max_bad_share)
        labels = torch.as_tensor(source.labels)[gathered.indices]
        device = encoder.mean.device
        features[part] = LabelledFeatures(gathered.features.to(device), labels.to(device))
        bad += gathered.bad
    rank = scores.effective_rank(features["val"].features)
    rows = _score(config, features["train"], features["val"])
    best = max(rows, key=lambda row: row["top1"])
    report = {"settings": configs.to_mapping(config), "weights": facts, **_about(encoder, labelled, features)}
    report |= {"best": best, "results": rows, "effective_rank": rank, "bad_images": bad}
    report |= {"versions": {package: version(package) for package in ("fastmim", "torch", "timm")}}
    write_json(config.out, report)
    console.print(_table(rows, best))
    console.print(f"effective rank {rank:.1f} of {encoder.width}")
    if bad:
        console.print(f"{len(bad)} images could not be read and were skipped")
    say(console, f"wrote {config.out}")
    return Probed(best["top1"], rank, report)


def _about(encoder: Encoder, labelled: Labelled, features: dict[str, LabelledFeatures]) -> dict[str, Any]:
    """What the report says of the images and their features."""
    return {
        "img_size": encoder.backbone.img_size,
        "width": encoder.width,
        "range": labelled.train.decoding.range,
        "classes": labelled.classes,
        "num_train": len(features["train"]),
        "num_val": len(features["val"]),
    }


def _score(config: ProbeConfig, train: LabelledFeatures, val: LabelledFeatures) -> list[dict[str, float]]:
    """Top-1 accuracy at every setting of the method."""
    if config.method == "knn":
        return [{"k": k, "top1": top1} for k, top1 in scores.knn(train, val).items()]
    bf16 = devices.resolve_bf16(config.precision, train.features.device)
    heads = scores.linear(train, val, seed=config.seed, bf16=bf16)
    return [{"lr": lr, "weight_decay": decay, "top1": top1} for (lr, decay), top1 in heads.items()]


def _check_writable(out: Path, *, overwrite: bool) -> None:
    if is_folder(out):
        raise RequestError(f"out is {out}, a folder; expected a file that can be written, such as probe.json")
    if exists(out) and not overwrite:
        raise RequestError(f"out is {out}, which exists; expected a new file: take another --out, or add --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.with_name(out.name + ".tmp").open("w", encoding="utf-8"):
            pass
        out.with_name(out.name + ".tmp").unlink()
    except OSError as error:
        raise RequestError(f"out is {out}: {error.strerror}; expected a file that can be written") from None


def _extract(
    config: ProbeConfig, encoder: Encoder, source: Source, world: World, console: Console, part: str
) -> list[Extracted]:
    """The features of a part by all processes, in the main one."""
    device = encoder.mean.device
    batches = extract(
        encoder,
        source,
        indices=Share(len(source), config.batch_size, world),
        batch_size=config.batch_size,
        num_workers=devices.resolve_workers(config.num_workers, sharing=world.local_size),
        bf16=devices.resolve_bf16(config.precision, device),
    )
    with console.status(f"extracting features of {len(source):,} images ({part})"):
        return [each for found in in_order(batches, len(source), config.batch_size, world) for each in found]


def _table(rows: list[dict[str, float]], best: dict[str, float]) -> Table:
    """One row per k, or per learning rate and weight decay; the best is marked."""
    table = Table()
    for name in rows[0]:
        table.add_column({"k": "k", "lr": "learning rate", "weight_decay": "weight decay", "top1": "top-1"}[name])
    for row in rows:
        *varied, top1 = row.values()
        mark = " *" if row == best else ""
        table.add_row(*(f"{value:g}" for value in varied), f"{top1:.2%}{mark}")
    return table
