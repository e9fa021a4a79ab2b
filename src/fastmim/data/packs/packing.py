"""`fastmim pack`: convert any source into a pack, in parallel and resumable; verify a pack."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fastmim import config as configs
from fastmim.config import Dataset, takes
from fastmim.data.bad_images import BadImages
from fastmim.data.packs.settings import PackConfig
from fastmim.data.packs.shrinking import SUBSAMPLING, load_small
from fastmim.data.packs.writer import PackWriter, clean
from fastmim.data.sources import Source, objects, open_source
from fastmim.data.sources.pack import IMAGES, find_damage, is_packed, open_packed, read_manifest
from fastmim.errors import RequestError, RunError
from fastmim.system import devices, display, growing
from fastmim.system.processes import find_place
from fastmim.system.progress import progress

COMMIT_SECONDS = 10.0
"""Time between commits: the most work that a kill can lose."""


@dataclass(frozen=True)
class Packing:
    """The state of a pack when the call returned."""

    out: Path
    num_images: int
    """Images in the pack."""
    num_read: int
    """Images of the source that have been read, unreadable ones included."""
    num_source: int

    @property
    def finished(self) -> bool:
        """False if a signal stopped it; calling again resumes."""
        return self.num_read == self.num_source


@takes(PackConfig)
def pack(
    data: str | os.PathLike[str] | Dataset = "",
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    **settings: Any,
) -> Packing:
    """Shrink images once, into a directory that `data` accepts and that loads several times faster.

    Every image is decoded, turned upright, shrunk to `short_side` along its shorter side (smaller ones are kept
    as they are) and written in the source's order. Images that cannot be decoded are left out and listed in
    `bad_images.txt`. Until the pack is complete, everything is in `<out>.partial`; after a kill the same call
    resumes, having lost ten seconds of work at most, and makes the same pack as an uninterrupted call.

    Args:
        data: Anything that `pretrain` accepts.
        out: The directory to make.
        overwrite: Replace an existing pack, and discard what an interrupted call left.
        dry_run: Print what would be packed, and stop.
        settings: Fields of `PackConfig` (`fastmim pack --help` lists them).

    Raises:
        RequestError: The request is wrong, `out` exists, or its unfinished part was begun differently.
        RunError: Too many unreadable images, a full disk, or a worker process died.

    Example:
        >>> packing = fastmim.pack("photos/", "packed/")
        >>> run = fastmim.pretrain(data="packed/", backbone="vit_tiny_patch16_224", out="runs/packed")
    """
    if (place := find_place()).size > 1:
        raise RequestError(
            f"pack was started in {place.size} processes; expected one, which uses all cores of its machine: start it "
            f"without torchrun, and in Slurm without srun or with srun --ntasks 1"
        )
    config = configs.build(PackConfig, {"data": objects.text(data, name="data"), "out": out and Path(out)}, settings)
    if not config.data or config.out is None:
        missing = "out" if config.data else "data"
        raise RequestError(f"{missing} is not given; expected two arguments, images and the directory to make")
    source, console = open_source(config.data, config), Console(highlight=False)
    _check_labels(source)
    if dry_run:
        display.say(console, _describe(config, source))
        return Packing(config.out, 0, 0, len(source))
    say = functools.partial(display.say, console)
    with growing.hold(config.out, say):
        if not overwrite and (finished := _finished(config, source)):
            say(f"{config.out} is finished already: {finished.num_images:,} images; nothing to do")
            return finished
        request = {key: getattr(config, key) for key in ("codec", "short_side", "quality")}
        request |= {"range": source.decoding.range, "data": source.origin, "num_images": len(source)}
        writer = PackWriter(config.out, request=request, overwrite=overwrite)
        for line in source.remarks:
            say(line)
        return _write(config, source, writer, console)


def _write(config: PackConfig, source: Source, writer: PackWriter, console: Console) -> Packing:
    """Write the remaining images, and make the pack when it is complete."""
    try:
        if writer.files.num_saved != len(source):
            steps = _append(config, source, writer)
            writer.files.grow(source, steps, writer.facts, seconds=COMMIT_SECONDS, console=console)
        result = Packing(writer.out, writer.num_images, writer.files.num_saved, len(source))
        if result.finished:
            if not writer.num_images:
                raise RunError(
                    f"none of the {len(source):,} images in {source.origin} can be read: check that the files are "
                    f"images and complete; the reasons are in {writer.files.folder}/bad_images.txt"
                )
            writer.finish(_about(config, source))
    except OSError as error:
        raise writer.files.failure(error, len(source)) from error
    if result.finished:
        _print_summary(result, console)
    return result


def _finished(config: PackConfig, source: Source) -> Packing | None:
    """The pack in `out`, if it is whole and what this request makes; leftovers of its making are removed."""
    out = config.out
    if out is None or not is_packed(out):
        return None
    try:
        manifest = read_manifest(out, origin=str(out))
        if any(manifest.get(key) != value for key, value in _about(config, source).items() if key != "versions"):
            return None
        num_images = len(open_packed(out, origin=str(out)))
        clean(out)
    except (RequestError, OSError):
        return None
    return Packing(out, num_images, len(source), len(source))


def verify(pack: str | os.PathLike[str]) -> int:
    """Compare a pack with its checksums.

    Returns:
        The number of images in it.

    Raises:
        RequestError: `pack` is not a pack, or cannot be opened.
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
        raise RunError(f"{pack} is damaged in {listed}: copy it again, or make it again with --overwrite")
    return len(packed)


def _append(config: PackConfig, source: Source, writer: PackWriter) -> Iterator[int]:
    """Append the remaining images batch by batch; yield the number of images read."""
    bad_images = BadImages(writer.files.folder, num_images=len(source), max_share=config.max_bad_share)
    stream = load_small(
        source,
        codec=config.codec,
        short_side=config.short_side,
        quality=config.quality,
        first=writer.files.num_saved,
        num_workers=_num_workers(config),
    )
    for batch in stream:
        positions, read = batch["rows"][:, 0], batch["read"]
        labels = None if source.labels is None else source.labels[positions]
        names = [_short_name(source, position) for position in positions.tolist()]
        writer.append(batch["bytes"].numpy(), _in_origin(source, batch["rows"]), names, labels)
        bad_images.update(batch["bad"], num_seen=len(read))
        yield read.stop


def _num_workers(config: PackConfig) -> int:
    return devices.num_cores() if config.num_workers is None else config.num_workers


def _describe(config: PackConfig, source: Source) -> str:
    codec = f"jpeg of quality {config.quality}" if config.codec == "jpeg" else config.codec
    lines = [
        f"data      {source.origin}: {len(source):,} images",
        *source.remarks,
        f"pack      {codec}, shorter side {config.short_side} px at most; {_num_workers(config)} processes",
        f"out       {config.out}",
    ]
    return "\n".join(lines)


def _check_labels(source: Source) -> None:
    labels = source.labels
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (len(source),)):
        raise RequestError(
            f"{source.origin} has labels of type {labels.dtype} {labels.shape}; expected {len(source)} integers"
        )


def _short_name(source: Source, position: int) -> bytes:
    """The image's path within the source's root, or else its name."""
    return os.fsencode(source.name(position)) if source.root is None else source.key(position)


def _in_origin(source: Source, rows: np.ndarray) -> np.ndarray:
    """The rows, with positions in the source that a pack was made from instead of positions in the pack."""
    rows[:, 0] = [source.position(position) for position in rows[:, 0].tolist()]
    return rows


def _about(config: PackConfig, source: Source) -> dict[str, Any]:
    """The manifest's fields other than counts and checksums."""
    return {
        "codec": config.codec,
        "quality": config.quality if config.codec == "jpeg" else None,
        "subsampling": SUBSAMPLING if config.codec == "jpeg" else None,
        "short_side": config.short_side,
        "range": source.decoding.range,
        "num_source": len(source),
        "data": source.origin,
        "root": source.root,
        "classes": source.classes,
        "labelled": source.labels is not None,
        "versions": {name: version(name) for name in ("fastmim", "torch", "simplejpeg", "pillow")},
    }


def _print_summary(result: Packing, console: Console) -> None:
    num_bytes = (result.out / IMAGES).stat().st_size
    left_out = result.num_source - result.num_images
    note = f"; {left_out:,} unreadable, listed in {result.out / 'bad_images.txt'}" if left_out else ""
    display.say(
        console,
        f"wrote {result.out}: {result.num_images:,} images, {num_bytes / 1e6:,.1f} MB, "
        f"{num_bytes / result.num_images / 1e3:,.1f} KB an image{note}",
    )
