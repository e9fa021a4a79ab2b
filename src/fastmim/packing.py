"""`fastmim pack`: one pass over any source into a pack, by all cores, resumable; and its verification."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fastmim import locking, runs
from fastmim.config import RequestError, RunError
from fastmim.data.bad_images import BadImages
from fastmim.data.files import Files
from fastmim.data.pack_writer import PackWriter, partial_folder
from fastmim.data.packed import CODECS, IMAGES, Packed, find_damage, is_packed
from fastmim.data.small import QUALITY, SUBSAMPLING, load_small
from fastmim.data.sources import Source, open_source
from fastmim.loop import StopSignals
from fastmim.progress import progress

COMMIT_SECONDS = 10.0
"""How much work a kill can cost at most."""


@dataclass(frozen=True)
class Packing:
    """How far a pack has come."""

    out: Path
    num_images: int
    """Images in the pack."""
    num_read: int
    """Images of the source that were looked at."""
    num_source: int

    @property
    def finished(self) -> bool:
        """False if a signal stopped it; the same call resumes."""
        return self.num_read == self.num_source


def pack(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    codec: str = "jpeg",
    short_side: int = 256,
    num_workers: int | None = None,
    max_bad_share: float = 0.05,
    overwrite: bool = False,
) -> Packing:
    """Make images small once, into a directory that `data` takes and that loads several times faster.

    Every image is decoded, turned upright, shrunk to `short_side` along its shorter side (smaller ones stay as
    they are) and written in the source's order; those that cannot be decoded are left out and listed in
    `bad_images.txt`. Until it is whole, everything is in `<out>.partial`; after a kill the same call goes on
    where it was at most ten seconds before, and gives the same pack as without the interruption.

    Args:
        data: Anything that `pretrain` takes.
        out: The directory to make.
        codec: "jpeg" (quality 95, full colour resolution) or "raw" (pixels, five times larger, faster to read).
        short_side: In pixels; twice the training resolution leaves 3 % of the crops to be enlarged.
        num_workers: Processes; one for each core if None.
        max_bad_share: Stop when more than this share of the images is unreadable.
        overwrite: Replace the pack that is there, and what an interrupted call left.

    Raises:
        RequestError: The request is wrong, `out` is there already, or its unfinished part was begun differently.
        RunError: Too many unreadable images, a full disk, or a worker died.
    """
    if codec not in CODECS:
        raise RequestError(f"codec is {codec}; expected {' or '.join(CODECS)}")
    if short_side < 1:
        raise RequestError(f"short_side is {short_side}; expected at least 1 pixel, such as 256")
    if num_workers is not None and num_workers < 0:
        raise RequestError(f"num_workers is {num_workers}; expected 0 or more")
    if not 0 <= max_bad_share <= 1:
        raise RequestError(f"max_bad_share is {max_bad_share:g}; expected between 0 and 1")
    out, console = Path(out), Console(highlight=False)
    source = open_source(os.fspath(data))
    _check_labels(source)
    workers = runs.num_cores() if num_workers is None else num_workers
    say = functools.partial(console.print, soft_wrap=True, markup=False)
    with locking.hold(partial_folder(out), say, out=out):
        return _pack(source, out, console, codec, short_side, workers, max_bad_share, overwrite)


def _pack(
    source: Source,
    out: Path,
    console: Console,
    codec: str,
    short_side: int,
    workers: int,
    max_bad_share: float,
    overwrite: bool,
) -> Packing:
    request = {"data": source.origin, "codec": codec, "short_side": short_side, "num_images": len(source)}
    writer = PackWriter(out, request=request, overwrite=overwrite)
    if writer.next:
        _check_unchanged(writer, source)
        console.print(f"resuming at image {writer.next:,} of {len(source):,}")
    try:
        with writer:
            _append(source, writer, console, codec, short_side, workers, max_bad_share)
        result = Packing(out, writer.num_images, writer.next, len(source))
        if result.finished:
            if not writer.num_images:
                raise RunError(
                    f"none of the {len(source):,} images in {source.origin} can be read: check that the files are "
                    f"images and complete; the reasons are in {writer.folder}/bad_images.txt"
                )
            writer.finish(_about(source, codec, short_side))
    except OSError as error:
        raise RunError(
            f"could not write {writer.folder}: {error.strerror}; the first {writer.next:,} of {len(source):,} images "
            f"are safe: free space and run the same command to resume"
        ) from error
    if result.finished:
        _say_what_was_made(result, console)
    return result


def verify(pack: str | os.PathLike[str]) -> int:
    """Compare a pack with its checksums.

    Returns:
        The number of images in it.

    Raises:
        RequestError: It is no pack, or cannot be opened.
        RunError: Blocks are damaged; the message names them.
    """
    folder = Path(pack)
    if not is_packed(folder):
        raise RequestError(f"{pack} is not a pack; expected a directory that fastmim pack made")
    packed = open_source(str(pack))
    with progress(Console(highlight=False), total=(folder / IMAGES).stat().st_size, unit="MB", scale=10**6) as show:
        damage = find_damage(folder, origin=str(pack), show=show)
    if damage:
        listed = "; ".join(damage[:5]) + (f"; and {len(damage) - 5} more" if len(damage) > 5 else "")
        raise RunError(f"{pack} is damaged in {listed}: copy it anew, or make it again with --overwrite")
    return len(packed)


def _append(
    source: Source,
    writer: PackWriter,
    console: Console,
    codec: str,
    short_side: int,
    num_workers: int,
    max_bad_share: float,
) -> None:
    """Write what is left; returns early, with all that was done saved, if a signal asks for it."""
    bad_images = BadImages(writer.folder, num_images=len(source), max_share=max_bad_share)
    stream = load_small(source, codec=codec, short_side=short_side, first=writer.next, num_workers=num_workers)
    committed = time.monotonic()
    with StopSignals() as stop, progress(console, total=len(source), done=writer.next) as show:
        for found in stream:
            positions, read = found["rows"][:, 0], found["read"]
            labels = None if source.labels is None else source.labels[positions]
            names = [_short_name(source, position) for position in positions.tolist()]
            writer.append(found["bytes"].numpy(), _in_origin(source, found["rows"]), names, labels)
            bad_images.update(found["bad"], num_seen=len(read))
            done = read.stop == len(source)
            if done or stop.requested or time.monotonic() - committed > COMMIT_SECONDS:
                writer.commit(next_position=read.stop, last_name=source.name(read.stop - 1))
                committed = time.monotonic()
            show(read.stop)
            if stop.requested:
                return


def _check_labels(source: Source) -> None:
    labels = source.labels
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (len(source),)):
        raise RequestError(
            f"{source.origin} has labels of type {labels.dtype} {labels.shape}; expected {len(source)} integers"
        )


def _check_unchanged(writer: PackWriter, source: Source) -> None:
    """The image that was read last must still be where it was."""
    name = source.name(writer.next - 1)
    if name != writer.last_name:
        raise RequestError(
            f"data is {source.origin}, whose image {writer.next} is {name}; expected {writer.last_name}, as when "
            f"this began: give it the same images, or start anew with --overwrite"
        )


def _short_name(source: Source, position: int) -> bytes:
    """A path within the source's root, or else what the source calls the image."""
    if isinstance(source, Files):
        return source.paths[position]
    if isinstance(source, Packed):
        return source.short_name(position)
    return os.fsencode(source.name(position))


def _in_origin(source: Source, rows: np.ndarray) -> np.ndarray:
    """The rows, with positions in what a pack was made from instead of positions in the pack."""
    if isinstance(source, Packed):
        rows[:, 0] = source.positions[rows[:, 0]]
    return rows


def _about(source: Source, codec: str, short_side: int) -> dict[str, Any]:
    """What the manifest says besides numbers and checksums."""
    return {
        "codec": codec,
        "quality": QUALITY if codec == "jpeg" else None,
        "subsampling": SUBSAMPLING if codec == "jpeg" else None,
        "short_side": short_side,
        "num_source": len(source),
        "data": source.origin,
        "root": source.root if isinstance(source, Files | Packed) else None,
        "classes": source.classes,
        "labelled": source.labels is not None,
        "versions": {name: version(name) for name in ("fastmim", "torch", "simplejpeg", "pillow")},
    }


def _say_what_was_made(result: Packing, console: Console) -> None:
    num_bytes = (result.out / IMAGES).stat().st_size
    left_out = result.num_source - result.num_images
    note = f"; {left_out:,} unreadable, listed in {result.out / 'bad_images.txt'}" if left_out else ""
    console.print(
        f"wrote {result.out}: {result.num_images:,} images, {num_bytes / 1e6:,.1f} MB, "
        f"{num_bytes / result.num_images / 1e3:,.1f} KB an image{note}",
        soft_wrap=True,
    )
