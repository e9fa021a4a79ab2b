"""The files of a pack while it is being made: they grow in `<out>.partial`, then replace `out` in one rename."""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastmim.data.sources.pack import FORMAT, IMAGES, INDEX, MANIFEST, NAMES, ROW, VERSION, blocks_fit, is_packed
from fastmim.errors import RequestError
from fastmim.system import locking
from fastmim.system.files import fsync, remove, write_text
from fastmim.system.growing import PROGRESS, GrowingFiles, is_count

BLOCK_BYTES = 1 << 26
"""A block, the unit of the checksums, ends with the batch of images that brings it to this length."""
_ROWS = "rows.bin"
_REPLACED = "replaced"
"""The pack that the new one replaces, within the new one until that is complete."""


class PackWriter:
    """Appends images to the files in `<out>.partial`; `finish` turns them into the pack.

    Args:
        out: The directory of the finished pack.
        request: The settings that decide the contents, as JSON types; they must equal those of an unfinished part.
        overwrite: Discard an unfinished part, and replace the pack that `out` may hold.

    Raises:
        RequestError: `out` exists or cannot be written, or its unfinished part was begun with another request.
        RunError: The unfinished part is damaged.
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
            self._blocks: list[dict[str, int]] = committed.get("blocks", [])
            self._open_block = committed.get("open_block", {"num_images": 0, "end": 0, "crc32": 0})
            self.num_images = committed.get("num_images", 0)
            lengths = self.files.lengths
            if (
                not is_count(self.num_images)
                or lengths[_ROWS] != self.num_images * ROW.itemsize
                or not isinstance(self._blocks, list)
                or not blocks_fit([*self._blocks, self._open_block], self.num_images, lengths[IMAGES])
            ):
                raise self.files.damage(PROGRESS, "is damaged")
            self.files.recover()
        except OSError as error:
            raise RequestError(
                f"out is {out}: {error.strerror or error}; expected a directory that can be made"
            ) from None

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

    def facts(self) -> dict[str, Any]:
        """What a commit records."""
        return {
            "request": self.request,
            "replace": self.replace,
            "num_images": self.num_images,
            "blocks": self._blocks,
            "open_block": self._open_block,
        }

    def finish(self, about: Mapping[str, Any]) -> None:
        """Turn everything committed into the pack; can be repeated after a kill.

        Args:
            about: Further fields of the manifest: codec, root, classes, labelled, versions ...
        """
        self._close_block()
        files, folder, header = self.files, self.files.folder, io.BytesIO()
        descr = np.lib.format.dtype_to_descr(ROW)
        np.lib.format.write_array_header_1_0(
            header, {"descr": descr, "fortran_order": False, "shape": (self.num_images,)}
        )
        checksum = files.copy(_ROWS, INDEX, header=header.getvalue())
        sizes: dict[str, dict[str, int]] = {
            IMAGES: {"bytes": files.lengths[IMAGES]},
            INDEX: {"bytes": (folder / INDEX).stat().st_size, "crc32": checksum},
            NAMES: {"bytes": files.lengths[NAMES], "crc32": files.checksums[NAMES]},
        }
        manifest = {"format": FORMAT, "version": VERSION, "num_images": self.num_images, **about}
        manifest |= {"files": sizes, "blocks": self._blocks}
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        if self.out.exists():
            self.out.rename(folder / _REPLACED)
        (folder / locking.FILE).unlink(missing_ok=True)
        folder.rename(self.out)
        fsync(folder.parent)
        clean(self.out)


def clean(pack: Path) -> None:
    """Remove from a finished pack what was kept until it was complete, for the case of a kill."""
    replaced = pack / _REPLACED
    if replaced.is_dir() and not replaced.is_symlink():
        shutil.rmtree(replaced)
    for name in (_REPLACED, _ROWS, PROGRESS):
        with suppress(IsADirectoryError, FileNotFoundError):
            (pack / name).unlink()
    for path in pack.glob("*.tmp"):
        remove(path)
