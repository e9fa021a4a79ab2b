"""`fastmim embed`: write the features of any number of images to a file, resumable and in bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from fastmim import config as configs
from fastmim.config import takes
from fastmim.data.bad_images import BadImages
from fastmim.data.sources import Source, objects, open_source
from fastmim.errors import RequestError
from fastmim.system import devices, display, growing
from fastmim.system.files import exists
from fastmim.training.sharing import Share, follow, in_order
from fastmim.training.world import World, joined
from fastmim.transfer.features.encoder import Encoder, open_encoder
from fastmim.transfer.features.extraction import extract
from fastmim.transfer.features.feature_file import FeatureWriter, clear, holds
from fastmim.transfer.features.settings import EmbedConfig

COMMIT_SECONDS = 30.0
"""Time between commits: the most work that a kill can lose."""


@dataclass(frozen=True)
class Embedded:
    """The state of an embedding when the call returned."""

    out: Path
    num_images: int
    num_read: int
    """Images read so far, unreadable ones included."""
    num_rows: int
    """Readable images, each of which is a row of the file."""
    width: int

    @property
    def finished(self) -> bool:
        """False if a signal stopped it; calling again resumes."""
        return self.num_read == self.num_images


@takes(EmbedConfig)
def embed(*, overwrite: bool = False, dry_run: bool = False, **settings: Any) -> Embedded:
    """Write the features of a source's images to a Parquet or NumPy file.

    A .parquet file has the columns path, label (the class's name, or null) and embedding (fixed-size list of
    float32); its metadata records which weights were used. A .npy file holds a float32 array (rows, D), and a
    .csv file of the same name the path and label of each row, and one ending in .settings.json what the metadata
    would. Rows are in the source's order. An unreadable image has no row; it is listed in a file of the same name
    ending in .bad_images.txt. With `pool="patches"` a row holds the features of all positions: of D numbers each,
    row by row of the map, whose height and width are `grid` in the metadata; with `pool="attention"` the weights of
    these positions, head by head.

    Until `out` is complete, everything is in `<out>.partial`. After a kill the same call resumes, having lost
    30 seconds of work at most, and writes the same file as an uninterrupted call.

    Args:
        overwrite: Replace `out`, and discard what an interrupted call left.
        dry_run: Print what would be embedded, and stop.
        settings: Fields of `EmbedConfig` (`fastmim embed --help` lists them).

    Raises:
        RequestError: the request is wrong, `out` exists, or its unfinished part has other settings.
        RunError: too many unreadable images, a full disk, or published weights that cannot be downloaded.

    Example:
        >>> embedded = fastmim.embed(weights="runs/photos", data="photos/", out="features.npy")
        >>> features = numpy.load(embedded.out)  # (number of images, width)
    """
    config = configs.build(EmbedConfig, objects.named(settings, EmbedConfig))
    if config.data is None:
        raise RequestError("data is not given; expected images: --data photos/")
    if config.out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise RequestError(
            f"out is {config.out}, but pyarrow is not installed; run: pip install 'fastmim[embed]', or take a .npy"
        )
    with joined() as world, ExitStack() as stack:
        console = Console(highlight=False, quiet=not world.main)
        with world.together():
            world.check_devices(config.devices)
            encoder, source, asked = _open(config, console, world)
        for what, value in (configs.to_mapping(config) | asked).items():
            world.check_same(what, value)
        result, writer = Embedded(config.out, len(source), 0, 0, encoder.width), None
        with world.together():
            if world.main:
                found = _begin(result, asked, console, stack, overwrite=overwrite, dry_run=dry_run)
                result, writer = (result, found) if isinstance(found, FeatureWriter) else (found, None)
        first = world.exchange(writer.num_read if writer else None)[0]
        if first is not None:
            rounds = _append(config, encoder, source, writer, world, first=first)
            if writer:
                result = _write(config, source, writer, rounds, console, world)
            else:
                follow(rounds, world)
        return world.exchange(result)[0]


def _open(config: EmbedConfig, console: Console, world: World) -> tuple[Encoder, Source, dict[str, Any]]:
    """The encoder, the images, and what decides the rows."""
    encoder, facts = open_encoder(config, world)
    assert config.data is not None
    source = open_source(config.data, config, inherited=encoder.grey_range)
    notes = devices.precision_notes(config.precision, encoder.mean.device)
    display.say(
        console,
        f"weights   {config.weights}: {', '.join(f'{k} {v}' for k, v in facts.items())}\n"
        f"features  {config.pool} of block {encoder.block} at {encoder.backbone.img_size} px: {encoder.width} numbers\n"
        + "\n".join([f"data      {config.data}: {len(source):,} images", *source.remarks, *notes]),
    )
    asked = {key: value for key, value in configs.to_mapping(config).items() if key not in config.RESUMABLE}
    asked |= {"range": source.decoding.range}
    if config.pool in ("patches", "attention"):
        facts = facts | {"grid": list(encoder.grid)}
    asked |= {"img_size": encoder.backbone.img_size, "num_images": len(source)} | facts
    return encoder, source, asked


def _begin(
    nothing: Embedded, asked: dict[str, Any], console: Console, stack: ExitStack, *, overwrite: bool, dry_run: bool
) -> FeatureWriter | Embedded:
    """Hold the output until the stack ends, and return its writer; or the result, if nothing is to be written."""
    out, width, say = nothing.out, nothing.width, functools.partial(display.say, console)
    _finished(out, width, asked, overwrite)
    if dry_run:
        return nothing
    stack.enter_context(growing.hold(out, say))
    if (num_rows := _finished(out, width, asked, overwrite)) is not None:
        clear(growing.partial_folder(out))
        say(f"{out} is finished already: {num_rows:,} x {width}; nothing to do")
        return replace(nothing, num_read=nothing.num_images, num_rows=num_rows)
    return FeatureWriter(out, width=width, settings=asked, overwrite=overwrite)


def _write(
    config: EmbedConfig, source: Source, writer: FeatureWriter, rounds: Iterator[int], console: Console, world: World
) -> Embedded:
    """Write the remaining images, and make the file when it is complete."""
    files = writer.files
    try:
        if writer.num_read != len(source):
            files.grow(source, rounds, writer.facts, seconds=COMMIT_SECONDS, console=console, agree=world.agree)
        result = Embedded(config.out, len(source), writer.num_read, writer.num_rows, writer.width)
        if result.finished:
            writer.finish()
    except OSError as error:
        raise files.failure(error, len(source)) from error
    if result.finished:
        left_out = len(source) - writer.num_rows
        note = f"; {left_out:,} unreadable, listed in {writer.bad_images}" if left_out else ""
        paths = f", their paths and labels in {config.out.with_suffix('.csv')}" if config.out.suffix == ".npy" else ""
        display.say(console, f"wrote {config.out}: {writer.num_rows:,} x {writer.width}{paths}{note}")
    return result


def _finished(out: Path, width: int, settings: dict[str, Any], overwrite: bool) -> int | None:
    """The number of rows of `out` if it is what is asked for; refuse to replace anything else without `overwrite`."""
    if overwrite or not exists(out) or (growing.partial_folder(out) / growing.PROGRESS).exists():
        return None
    if (num_rows := holds(out, width=width, settings=settings)) is None:
        raise RequestError(f"out is {out}, which exists; expected a new file: take another, or add --overwrite")
    return num_rows


def _append(
    config: EmbedConfig, encoder: Encoder, source: Source, writer: FeatureWriter | None, world: World, *, first: int
) -> Iterator[int]:
    """Encode the images from `first` on; yield the number of images read, where the writer is."""
    bad_images = None
    if writer:
        bad_images = BadImages(writer.files.folder, num_images=len(source), max_share=config.max_bad_share)
    batches = extract(
        encoder,
        source,
        indices=Share(len(source), config.batch_size, world, first=first),
        batch_size=config.batch_size,
        num_workers=devices.resolve_workers(config.num_workers, sharing=world.local_size),
        bf16=devices.resolve_bf16(config.precision, encoder.mean.device),
    )
    for batches_of_all in in_order(batches, len(source) - first, config.batch_size, world):
        with world.together():
            for batch in batches_of_all:
                assert writer is not None and bad_images is not None
                positions = batch.indices.tolist()
                num_read = len(positions) + len(batch.bad)
                names = [source.name(index) for index in positions]
                labels = [_label(source, index) for index in positions]
                writer.append(batch.features.numpy(), names, labels, num_read=num_read)
                bad_images.update(batch.bad, num_seen=num_read)
        yield writer.num_read if writer else 0


def _label(source: Source, index: int) -> str:
    """The name of an image's class; "" if it has none."""
    if source.labels is None:
        return ""
    number = int(source.labels[index])
    return source.classes[number] if source.classes else str(number)
