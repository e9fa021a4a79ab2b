"""The files of a pack while it is being made: they grow in `<out>.partial`, then replace `out` in one rename."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmim.data.sources.pack import FORMAT, IMAGES, INDEX, MANIFEST, NAMES, ROW, VERSION, is_packed
from fastmim.errors import RequestError
from fastmim.system import locking
from fastmim.system.files import crc32, fsync, write_text
from fastmim.system.growing import PROGRESS, GrowingFiles

BLOCK_BYTES = 1 << 26
"""A block, the unit of the checksums, ends with the batch of images that brings it to this length."""
_ROWS = "rows.bin"


class PackWriter:
    """Appends images to the files in `<out>.partial`; `finish` turns them into the pack.

    Args:
        out: The directory of the finished pack.
        request: The settings that decide the contents, as JSON types; they must equal those of an unfinished part.
        overwrite: Discard an unfinished part, and replace the pack that `out` may hold.

    Raises:
        RequestError: `out` exists or cannot be written, or its unfinished part was begun with another request.
    """

    def __init__(self, out: Path, *, request: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out, self.request = out, request
        try:
            self.files = GrowingFiles(out, (IMAGES, NAMES, _ROWS), overwrite=overwrite)
            if differences := self.files.differences("request", request):
                raise RequestError(
                    f"out is {out}, whose unfinished part in {self.files.folder} was begun differently "
                    f"({differences}): take another directory, or start over with --overwrite"
                )
            committed = self.files.committed
            self.replace = committed.get("replace", overwrite)
            self._check_out()
        except OSError as error:
            raise RequestError(f"out is {out}: {error.strerror}; expected a directory that can be made") from None
        self.num_read, self.num_images = committed.get("next", 0), committed.get("num_images", 0)
        self._blocks: list[dict[str, int]] = committed.get("blocks", [])
        self._open_block = committed.get("open_block", {"num_images": 0, "end": 0, "crc32": 0})

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

    def append(self, content: np.ndarray, rows: np.ndarray, names: Sequence[bytes], labels: np.ndarray | None) -> None:
        """Add b images.

        Args:
            content: uint8 (n,), their bytes one after another.
            rows: int64 (b, 5): position, bytes, height, width, channels.
            names: One for each image.
            labels: (b,) int64; None if there are none.
        """
        lengths = rows[:, 1]
        entries = np.empty(len(rows), dtype=ROW)
        entries["offset"] = self.files.lengths[IMAGES] + lengths.cumsum() - lengths
        entries["label"] = -1 if labels is None else labels
        for column, name in enumerate(("position", "length", "height", "width", "channels")):
            entries[name] = rows[:, column]
        entries["name_end"] = self.files.lengths[NAMES] + np.fromiter(map(len, names), np.int64, len(rows)).cumsum()
        self.files.append(IMAGES, content.data)
        self.files.append(NAMES, b"".join(names))
        self.files.append(_ROWS, entries.tobytes())
        self.num_images += len(rows)
        block = self._open_block
        block["crc32"] = zlib.crc32(content.data, block["crc32"])
        block["num_images"] += len(rows)
        block["end"] = self.files.lengths[IMAGES]
        if block["end"] - (self._blocks[-1]["end"] if self._blocks else 0) >= BLOCK_BYTES:
            self._close_block()

    def _close_block(self) -> None:
        if self._open_block["num_images"]:
            self._blocks.append(self._open_block)
        self._open_block = {"num_images": 0, "end": self.files.lengths[IMAGES], "crc32": 0}

    def commit(self, num_read: int, last_name: str) -> None:
        """Make everything so far survive a kill.

        Args:
            num_read: Images of the source that have been read, unreadable ones included.
            last_name: The name of the last of them, which a later call checks.
        """
        self.num_read = num_read
        self.files.commit(
            {
                "request": self.request,
                "replace": self.replace,
                "next": num_read,
                "num_images": self.num_images,
                "last_name": last_name,
                "blocks": self._blocks,
                "open_block": self._open_block,
            }
        )

    def finish(self, about: Mapping[str, Any]) -> None:
        """Turn everything committed into the pack; can be repeated after a kill.

        Args:
            about: Further fields of the manifest: codec, root, classes, labelled, versions ...
        """
        self._close_block()
        folder = self.files.folder
        header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (self.num_images,)}
        with (folder / _ROWS).open("rb") as rows, (folder / INDEX).open("wb") as index:
            np.lib.format.write_array_header_1_0(index, header)
            shutil.copyfileobj(rows, index)
            index.flush()
            os.fsync(index.fileno())
        files: dict[str, dict[str, int]] = {IMAGES: {"bytes": self.files.lengths[IMAGES]}}
        for name in (INDEX, NAMES):
            files[name] = {"bytes": (folder / name).stat().st_size, "crc32": crc32(folder / name)}
        manifest = {"format": FORMAT, "version": VERSION, "num_images": self.num_images, **about}
        manifest |= {"files": files, "blocks": self._blocks}
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        replaced = folder.with_suffix(".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if self.out.exists():
            self.out.rename(replaced)
        (folder / locking.FILE).unlink(missing_ok=True)
        folder.rename(self.out)
        fsync(folder.parent)
        for name in (_ROWS, PROGRESS):  # kept until now for the case of a kill
            (self.out / name).unlink()
        shutil.rmtree(replaced, ignore_errors=True)
