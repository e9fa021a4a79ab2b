"""A pack on the disk while it grows: what is committed survives a kill, and the pack appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastmim.data.sources.pack import FORMAT, IMAGES, INDEX, MANIFEST, NAMES, ROW, VERSION, crc32, is_packed
from fastmim.errors import RequestError
from fastmim.system import locking

BLOCK_BYTES = 1 << 26
"""A block, the unit of the checksums, ends with the batch of images that takes it to this length."""
_ROWS, _PROGRESS = "rows.bin", "progress.json"


def partial_folder(out: Path) -> Path:
    """Where a pack is until it is whole."""
    return out.absolute().with_name(out.absolute().name + ".partial")


class PackWriter:
    """Appends images in `<out>.partial`, as a context manager; `finish` afterwards.

    `progress.json` is replaced at each commit and says how long the other files were then. What a kill left
    beyond that length is cut off when the work goes on.

    Args:
        out: The directory that it becomes.
        request: What decides the contents, as JSON types; an unfinished part of another request is refused.
        overwrite: Begin anew, and replace the pack that `out` may hold.

    Raises:
        RequestError: `out` is there already, cannot be written, or its unfinished part is of another request.
    """

    def __init__(self, out: Path, *, request: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out, self.folder = out, partial_folder(out)
        self.request = json.loads(json.dumps(request))
        self.next, self.num_images, self.last_name = 0, 0, ""
        self.replace = overwrite
        self._blocks: list[dict[str, int]] = []
        self._open_block = {"num_images": 0, "end": 0, "crc32": 0}
        self._bytes = dict.fromkeys((IMAGES, NAMES, _ROWS), 0)
        try:
            if overwrite and self.folder.exists():
                locking.clear(self.folder)
            if (self.folder / _PROGRESS).exists():
                self._go_on(json.loads((self.folder / _PROGRESS).read_text()))
            self._check_out()
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self._bytes:
                (self.folder / name).touch()
        except OSError as error:
            raise RequestError(f"out is {out}: {error.strerror}; expected a directory that can be made") from None

    def _go_on(self, progress: dict[str, Any]) -> None:
        before = progress["request"]
        differing = [
            f"{key} {before.get(key)} -> {self.request.get(key)}"
            for key in sorted(before.keys() | self.request.keys())
            if before.get(key) != self.request.get(key)
        ]
        if differing:
            raise RequestError(
                f"out is {self.out}, whose unfinished part in {self.folder} was begun differently "
                f"({'; '.join(differing)}): take another directory, or start anew with --overwrite"
            )
        self.next, self.num_images = progress["next"], progress["num_images"]
        self.last_name, self.replace = progress["last_name"], progress["replace"]
        self._blocks, self._open_block, self._bytes = progress["blocks"], progress["open_block"], progress["bytes"]

    def _check_out(self) -> None:
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return
        if not is_packed(self.out):
            raise RequestError(
                f"out is {self.out}, which exists and is no pack; expected a new directory: take another"
            )
        if not self.replace:
            raise RequestError(
                f"out is {self.out}, a pack already; expected a new directory: take another, or add --overwrite"
            )

    def __enter__(self) -> PackWriter:
        self._files: dict[str, IO[bytes]] = {}
        for name, length in self._bytes.items():
            os.truncate(self.folder / name, length)
            self._files[name] = (self.folder / name).open("ab", buffering=0)  # what a full disk refuses is not kept
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, content: np.ndarray, rows: np.ndarray, names: Sequence[bytes], labels: np.ndarray | None) -> None:
        """Add images.

        Args:
            content: uint8 (n,), their bytes one behind the other.
            rows: int64 (b, 5): position, bytes, height, width, channels.
            names: b of them.
            labels: (b,) int64; None if there are none.
        """
        lengths = rows[:, 1]
        entries = np.empty(len(rows), dtype=ROW)
        entries["offset"] = self._bytes[IMAGES] + lengths.cumsum() - lengths
        entries["label"] = -1 if labels is None else labels
        for column, name in enumerate(("position", "length", "height", "width", "channels")):
            entries[name] = rows[:, column]
        entries["name_end"] = self._bytes[NAMES] + np.fromiter(map(len, names), np.int64, len(rows)).cumsum()
        self._write(IMAGES, content.data)
        self._write(NAMES, b"".join(names))
        self._write(_ROWS, entries.tobytes())
        self.num_images += len(rows)
        block = self._open_block
        block["crc32"] = zlib.crc32(content.data, block["crc32"])
        block["num_images"] += len(rows)
        block["end"] = self._bytes[IMAGES]
        if block["end"] - (self._blocks[-1]["end"] if self._blocks else 0) >= BLOCK_BYTES:
            self._close_block()

    def _write(self, name: str, content: bytes | memoryview) -> None:
        view = memoryview(content)
        self._bytes[name] += len(view)
        while view:
            view = view[self._files[name].write(view) :]

    def _close_block(self) -> None:
        if self._open_block["num_images"]:
            self._blocks.append(self._open_block)
        self._open_block = {"num_images": 0, "end": self._bytes[IMAGES], "crc32": 0}

    def commit(self, *, next_position: int, last_name: str) -> None:
        """Have everything so far survive a kill.

        Args:
            next_position: In the source, of the image to go on with.
            last_name: Of the image before it, to know the source by.
        """
        for file in self._files.values():
            os.fsync(file.fileno())
        self.next, self.last_name = next_position, last_name
        progress = {
            "request": self.request,
            "replace": self.replace,
            "next": self.next,
            "num_images": self.num_images,
            "last_name": last_name,
            "bytes": self._bytes,
            "blocks": self._blocks,
            "open_block": self._open_block,
        }
        _write_json(self.folder / f"{_PROGRESS}.tmp", progress, indent=None)
        (self.folder / f"{_PROGRESS}.tmp").replace(self.folder / _PROGRESS)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Turn all that was committed into the pack; can be called again if a kill came in between.

        Args:
            about: More for the manifest: codec, root, classes, labelled, versions ...
        """
        self._close_block()
        header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (self.num_images,)}
        with (self.folder / _ROWS).open("rb") as rows, (self.folder / INDEX).open("wb") as index:
            np.lib.format.write_array_header_1_0(index, header)
            shutil.copyfileobj(rows, index)
            index.flush()
            os.fsync(index.fileno())
        files: dict[str, dict[str, int]] = {IMAGES: {"bytes": self._bytes[IMAGES]}}
        for name in (INDEX, NAMES):
            path = self.folder / name
            files[name] = {"bytes": path.stat().st_size, "crc32": crc32(path)}
        manifest = {"format": FORMAT, "version": VERSION, "num_images": self.num_images} | dict(about)
        _write_json(self.folder / MANIFEST, manifest | {"files": files, "blocks": self._blocks}, indent=1)
        replaced = self.folder.with_suffix(".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if self.out.exists():
            self.out.rename(replaced)
        (self.folder / locking.FILE).unlink(missing_ok=True)
        self.folder.rename(self.out)
        _fsync_folder(self.folder.parent)
        for name in (_ROWS, _PROGRESS):  # needed until here, to go on after a kill
            (self.out / name).unlink()
        shutil.rmtree(replaced, ignore_errors=True)


def _write_json(path: Path, content: Mapping[str, Any], *, indent: int | None) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
