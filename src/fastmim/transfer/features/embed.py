"""Embedding: the features of any number of images as a file, in bounded memory, resumable at any moment."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from fastmim import config as configs
from fastmim.data.bad_images import BadImages
from fastmim.data.sources import Source, open_source
from fastmim.errors import RequestError, RunError
from fastmim.system import devices, locking
from fastmim.system.progress import progress
from fastmim.system.signals import StopSignals
from fastmim.transfer.features.encoder import Encoder, open_encoder
from fastmim.transfer.features.extraction import extract
from fastmim.transfer.features.feature_file import Partial
from fastmim.transfer.features.settings import RESUMABLE, EmbedConfig

COMMIT_SECONDS = 30.0
"""How much work a kill can cost at most."""


@dataclass(frozen=True)
class Embedded:
    """How an embedding ended."""

    out: Path
    num_images: int
    num_read: int
    """Images looked at so far."""
    num_rows: int
    """Of these, the readable ones: the rows of the file."""
    width: int

    @property
    def finished(self) -> bool:
        """False if a signal stopped it; the same call resumes."""
        return self.num_read == self.num_images


def embed(*, overwrite: bool = False, dry_run: bool = False, **settings: Any) -> Embedded:
    """Write the features of a source's images to a Parquet or NumPy file.

    `out` ending in .parquet gets columns path, label (the class's name, or null) and embedding (fixed-size list of
    float32); its metadata says which weights made it. `out` ending in .npy gets a float32 array (rows, D), and a
    .csv of the same name the path and label of each row. Rows are in the source's order. An unreadable image has
    no row; it is listed in a file of the same name ending in .bad_images.txt.

    While it works, everything is in `<out>.partial`; `out` appears when it is whole. After a kill the same
    call goes on where it was at most 30 seconds before, and gives the same file as without the interruption.

    Args:
        overwrite: Replace `out`, and what an interrupted call left.
        dry_run: Print what would be embedded, and stop.
        settings: Fields of `EmbedConfig` (`fastmim embed --help` lists them).

    Raises:
        RequestError: the request is wrong, `out` is there already, or its unfinished part has other settings.
        RunError: too many unreadable images, a full disk, or published weights that cannot be had.
    """
    config = configs.build(EmbedConfig, settings)
    console = Console(highlight=False)
    if config.data is None:
        raise RequestError("data is not given; expected images: --data photos/")
    if config.out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise RequestError(
            f"out is {config.out}, but pyarrow is not installed; run: pip install 'fastmim[embed]', or take a .npy"
        )
    folder = config.out.with_name(config.out.name + ".partial")
    _check_out(config.out, folder, overwrite)
    source = open_source(config.data)
    encoder, facts = open_encoder(config)
    console.print(
        f"weights   {config.weights}: {', '.join(f'{k} {v}' for k, v in facts.items())}\n"
        f"features  {config.pool} of block {encoder.block} at {encoder.backbone.img_size} px: {encoder.width} numbers\n"
        f"data      {config.data}: {len(source):,} images",
        soft_wrap=True,
    )
    if dry_run:
        return Embedded(config.out, len(source), 0, 0, encoder.width)
    say = functools.partial(console.print, soft_wrap=True, markup=False)
    with locking.hold(folder, say, out=config.out):
        _check_out(config.out, folder, overwrite)  # another process may have made it while this one waited
        asked = {key: value for key, value in configs.to_mapping(config).items() if key not in RESUMABLE}
        asked |= {"img_size": encoder.backbone.img_size, "num_images": len(source)} | facts
        partial = Partial(folder, config.out, width=encoder.width, settings=asked, overwrite=overwrite)
        if partial.num_read:
            _check_unchanged(partial, source)
            console.print(f"resuming at image {partial.num_read:,} of {len(source):,}")
        return _write(config, encoder, source, partial, console)


def _write(config: EmbedConfig, encoder: Encoder, source: Source, partial: Partial, console: Console) -> Embedded:
    """Encode what is left, and make the file of it when it is whole."""
    with partial:
        if partial.num_read < len(source):
            _append(config, encoder, source, partial, console)
    result = Embedded(config.out, len(source), partial.num_read, partial.num_rows, encoder.width)
    if result.finished:
        partial.finish()
        left_out = len(source) - partial.num_rows
        note = f"; {left_out:,} unreadable, listed in {partial.bad_images}" if left_out else ""
        console.print(f"wrote {config.out}: {partial.num_rows:,} x {encoder.width}{note}", soft_wrap=True)
    return result


def _check_out(out: Path, folder: Path, overwrite: bool) -> None:
    """A file that is there is not replaced unasked, but one that a kill left half in place is completed."""
    begun = folder.exists() and any(path.name != locking.FILE for path in folder.iterdir())
    if out.exists() and not begun and not overwrite:
        raise RequestError(f"out is {out}, which exists; expected a new file: take another, or add --overwrite")


def _check_unchanged(partial: Partial, source: Source) -> None:
    """The image that was read last must still be where it was."""
    name = source.name(partial.num_read - 1)
    if name != partial.last_name:
        raise RequestError(
            f"data is {source.origin}, whose image {partial.num_read} is {name}; expected {partial.last_name}, as when "
            f"this began: give it the same images, or start anew with --overwrite"
        )


def _append(config: EmbedConfig, encoder: Encoder, source: Source, partial: Partial, console: Console) -> None:
    """Encode what is left; returns early, with all that was done saved, if a signal asks for it."""
    bad_images = BadImages(partial.folder, num_images=len(source), max_share=config.max_bad_share)
    stream = extract(
        encoder,
        source,
        indices=range(partial.num_read, len(source)),
        batch_size=config.batch_size,
        num_workers=devices.resolve_workers(config.num_workers),
        bf16=devices.resolve_bf16(config.precision, encoder.mean.device),
    )
    committed = time.monotonic()
    with StopSignals() as stop, progress(console, done=partial.num_read, total=len(source)) as show:
        for found in stream:
            positions = found.indices.tolist()
            num_read = len(positions) + len(found.bad)
            try:
                names = [source.name(index) for index in positions]
                labels = [_label(source, index) for index in positions]
                partial.append(found.features.numpy(), names, labels, num_read=num_read)
                bad_images.update(found.bad, num_seen=num_read)
                done = partial.num_read == len(source)
                if done or stop.requested or time.monotonic() - committed > COMMIT_SECONDS:
                    partial.commit(source.name(partial.num_read - 1))
                    committed = time.monotonic()
            except OSError as error:
                raise RunError(
                    f"could not write {partial.folder}: {error.strerror}; what was saved up to image "
                    f"{partial.num_saved:,} is intact: free space and run the same command to resume"
                ) from error
            show(partial.num_read)
            if stop.requested:
                return


def _label(source: Source, index: int) -> str:
    """The name of an image's class; empty if it has none."""
    if source.labels is None:
        return ""
    number = int(source.labels[index])
    return source.classes[number] if source.classes else str(number)
