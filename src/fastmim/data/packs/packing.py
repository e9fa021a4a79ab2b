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

from fastmim import config as configs
from fastmim.data.bad_images import BadImages
from fastmim.data.packs.settings import PackConfig
from fastmim.data.packs.shrinking import QUALITY, SUBSAMPLING, load_small
from fastmim.data.packs.writer import PackWriter, partial_folder
from fastmim.data.sources import Source, open_source
from fastmim.data.sources.files import Files
from fastmim.data.sources.pack import IMAGES, Packed, find_damage, is_packed
from fastmim.errors import RequestError, RunError
from fastmim.system import devices, locking
from fastmim.system.progress import progress
from fastmim.system.signals import StopSignals

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
    data: str | os.PathLike[str] = "",
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    **settings: Any,
) -> Packing:
    """Make images small once, into a directory that `data` takes and that loads several times faster.

    Every image is decoded, turned upright, shrunk to `short_side` along its shorter side (smaller ones stay as
    they are) and written in the source's order; those that cannot be decoded are left out and listed in
    `bad_images.txt`. Until it is whole, everything is in `<out>.partial`; after a kill the same call goes on
    where it was at most ten seconds before, and gives the same pack as without the interruption.

    Args:
        data: Anything that `pretrain` takes.
        out: The directory to make.
        overwrite: Replace the pack that is there, and what an interrupted call left.
        dry_run: Print what would be packed, and stop.
        settings: Fields of `PackConfig` (`fastmim pack --help` lists them).

    Raises:
        RequestError: The request is wrong, `out` is there already, or its unfinished part was begun differently.
        RunError: Too many unreadable images, a full disk, or a worker died.
    """
    config = configs.build(PackConfig, {"data": os.fspath(data), "out": out and Path(out)}, settings)
    if not config.data or config.out is None:
        missing = "out" if config.data else "data"
        raise RequestError(f"{missing} is not given; expected two arguments, images and the directory to make")
    source, console = open_source(config.data), Console(highlight=False)
    _check_labels(source)
    if dry_run:
        console.print(_describe(config, source), soft_wrap=True, markup=False)
        return Packing(config.out, 0, 0, len(source))
    say = functools.partial(console.print, soft_wrap=True, markup=False)
    with locking.hold(partial_folder(config.out), say, out=config.out):
        request = {key: getattr(config, key) for key in ("codec", "short_side")}
        request |= {"data": source.origin, "num_images": len(source)}
        writer = PackWriter(config.out, request=request, overwrite=overwrite)
        if writer.next:
            _check_unchanged(writer, source)
            console.print(f"resuming at image {writer.next:,} of {len(source):,}")
        return _write(config, source, writer, console)


def _write(config: PackConfig, source: Source, writer: PackWriter, console: Console) -> Packing:
    """Write what is left, and make the pack of it when it is whole."""
    try:
        with writer:
            _append(config, source, writer, console)
        result = Packing(writer.out, writer.num_images, writer.next, len(source))
        if result.finished:
            if not writer.num_images:
                raise RunError(
                    f"none of the {len(source):,} images in {source.origin} can be read: check that the files are "
                    f"images and complete; the reasons are in {writer.folder}/bad_images.txt"
                )
            writer.finish(_about(config, source))
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


def _append(config: PackConfig, source: Source, writer: PackWriter, console: Console) -> None:
    """Write what is left; returns early, with all that was done saved, if a signal asks for it."""
    bad_images = BadImages(writer.folder, num_images=len(source), max_share=config.max_bad_share)
    stream = load_small(
        source,
        codec=config.codec,
        short_side=config.short_side,
        first=writer.next,
        num_workers=_num_workers(config),
    )
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


def _num_workers(config: PackConfig) -> int:
    return devices.num_cores() if config.num_workers is None else config.num_workers


def _describe(config: PackConfig, source: Source) -> str:
    return (
        f"data      {source.origin}: {len(source):,} images\n"
        f"pack      {config.codec}, shorter side {config.short_side} px at most; {_num_workers(config)} processes\n"
        f"out       {config.out}"
    )


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


def _about(config: PackConfig, source: Source) -> dict[str, Any]:
    """What the manifest says besides numbers and checksums."""
    return {
        "codec": config.codec,
        "quality": QUALITY if config.codec == "jpeg" else None,
        "subsampling": SUBSAMPLING if config.codec == "jpeg" else None,
        "short_side": config.short_side,
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
