"""A pack: images shrunk once and stored in one file, read by offset (docs/packed-format.md)."""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastmim.data.greys import PLAIN, Decoding
from fastmim.data.settings import is_range, levels
from fastmim.data.unreadable import BadImage
from fastmim.errors import RequestError
from fastmim.system.files import crc32, open_regular, read_regular
from fastmim.system.growing import is_count

FORMAT, VERSION = "fastmim-pack", 1
CODECS = ("jpeg", "raw")
MANIFEST, IMAGES, INDEX, NAMES = "manifest.json", "images.bin", "index.npy", "names.bin"
ROW = np.dtype(
    [
        ("offset", "<i8"),  # first byte in images.bin
        ("label", "<i8"),  # position in the classes; -1 if the source has no labels
        ("position", "<i8"),  # in the source, unreadable images included
        ("name_end", "<i8"),  # end of the name in names.bin; the name begins where the one before ends
        ("length", "<i4"),  # bytes
        ("height", "<i4"),
        ("width", "<i4"),
        ("channels", "<i4"),  # 1 or 3
    ]
)
_CHUNK = 1 << 24
_MAX_CLASSES = 1 << 20
"""More classes than any dataset has: the limit for labels without names."""


@dataclass(frozen=True, eq=False)
class Packed:
    """The images of a pack. Each process opens the files for itself, at first use."""

    origin: str
    folder: Path
    codec: str
    num_images: int
    root: str | None
    """The folder that stored names start from, if they are paths; None if they are only names."""
    classes: list[str] | None
    labelled: bool
    decoding: Decoding = PLAIN
    """Its images have 8 bits; the levels are those with which they were made."""
    remarks: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __len__(self) -> int:
        return self.num_images

    def read(self, index: int) -> bytes | np.ndarray:
        offset, _, _, _, length, height, width, channels = self._rows[index].item()
        raw = self.codec == "raw"
        if not (0 <= offset <= offset + length <= len(self._bytes)) or (
            raw and not (min(height, width, channels) > 0 and height * width * channels == length)
        ):
            raise BadImage(f"its row in {INDEX} is damaged: see fastmim pack --verify {self.folder}")
        if raw:
            return self._pixels[offset : offset + length].reshape(height, width, channels)
        return self._bytes[offset : offset + length]

    def name(self, index: int) -> str:
        name = os.fsdecode(self._stored_name(index))
        return name if self.root is None else str(Path(self.root, name))

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(N,) int64; 8 bytes an image in each process that reads it."""
        return self._rows["label"].astype(np.int64) if self.labelled else None

    def key(self, index: int) -> bytes:
        return b"%d" % self.position(index) if self.root is None else self._stored_name(index)

    def position(self, index: int) -> int:
        return int(self._rows["position"][index])

    def _stored_name(self, index: int) -> bytes:
        """A path within `root`, or the name that the source gave to the image."""
        start = int(self._rows["name_end"][index - 1]) if index else 0
        return self._names[start : int(self._rows["name_end"][index])]

    @cached_property
    def _rows(self) -> np.ndarray:
        return _open_index(self.folder, self.num_images)

    @cached_property
    def _bytes(self) -> mmap.mmap | bytes:
        return _map(self.folder / IMAGES)

    @cached_property
    def _pixels(self) -> np.ndarray:
        return np.frombuffer(self._bytes, dtype=np.uint8)

    @cached_property
    def _names(self) -> mmap.mmap | bytes:
        return _map(self.folder / NAMES)


def is_packed(folder: Path) -> bool:
    """Whether a directory is a finished pack rather than a folder of images."""
    return (folder / MANIFEST).is_file() and any((folder / name).is_file() for name in (IMAGES, INDEX))


def open_packed(folder: Path, *, origin: str) -> Packed:
    """Open a pack. File sizes are checked; contents only by `find_damage`.

    Raises:
        RequestError: The pack is damaged, has a newer format, or holds no images.
    """
    manifest = read_manifest(folder, origin=origin)
    for name in (IMAGES, INDEX, NAMES):
        size, expected = _size(folder / name, origin=origin), manifest["files"][name]["bytes"]
        if size != expected:
            first = _truncated_block(manifest, size) if name == IMAGES else ""
            raise RequestError(f"{origin}/{name} has {size:,} bytes; expected {expected:,}{first}: {_REMEDY}")
    try:
        rows = _open_index(folder, manifest["num_images"])
    except Exception as error:  # whatever NumPy raises for the header of a stranger's file
        raise RequestError(f"{origin}/{INDEX} cannot be read ({' '.join(str(error).split())}): {_REMEDY}") from None
    if not blocks_fit(manifest["blocks"], len(rows), manifest["files"][IMAGES]["bytes"]):
        raise RequestError(f"{origin}/{MANIFEST} has invalid values for blocks: {_REMEDY}")
    if manifest["labelled"]:
        num_classes = len(manifest["classes"]) if manifest["classes"] else _MAX_CLASSES
        low, high = int(rows["label"].min()), int(rows["label"].max())
        if low < 0 or high >= num_classes:
            raise RequestError(
                f"{origin}/{INDEX} has labels from {low} to {high}; expected 0 to {num_classes - 1}: {_REMEDY}"
            )
    about = {name: manifest[name] for name in ("codec", "num_images", "root", "classes", "labelled")}
    decoding = Decoding(levels(manifest.get("range", "8bit")))
    return Packed(origin=origin, folder=folder.absolute(), decoding=decoding, **about)


_REMEDY = "copy the pack again, or recreate it with fastmim pack --overwrite"
_FIELDS = {
    "codec": str,
    "num_images": int,
    "root": str | None,
    "classes": list | None,
    "labelled": bool,
    "files": dict,
    "blocks": list,
}


def _size(path: Path, *, origin: str) -> int:
    try:
        os.close(open_regular(path))
        return path.stat().st_size
    except OSError as error:
        raise RequestError(f"{origin}/{path.name} of the pack cannot be read: {error.strerror}; {_REMEDY}") from None


def _open_index(folder: Path, num_images: int) -> np.ndarray:
    """Map the rows; ValueError if the file holds anything else."""
    with os.fdopen(open_regular(folder / INDEX), "rb") as file:
        if (version := np.lib.format.read_magic(file)) != (1, 0):
            raise ValueError(f"version {version} of the .npy format; expected 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != ROW or shape != (num_images,):
            raise ValueError(f"holds {dtype} {shape}; expected {ROW} ({num_images},)")
        start, size = file.tell(), os.fstat(file.fileno()).st_size
    if size != start + num_images * ROW.itemsize:
        raise ValueError(f"has {size:,} bytes; expected {start + num_images * ROW.itemsize:,}")
    return np.asarray(np.memmap(folder / INDEX, dtype=ROW, mode="r", offset=start, shape=(num_images,)))


def blocks_fit(blocks: list[Any], num_images: int, num_bytes: int) -> bool:
    """Whether blocks (`num_images`, `end`, `crc32`) follow each other and cover exactly so many images and bytes."""
    end = images = 0
    for block in blocks:
        if not isinstance(block, dict) or not all(is_count(block.get(key)) for key in ("num_images", "end", "crc32")):
            return False
        if block["end"] < end:
            return False
        end, images = block["end"], images + block["num_images"]
    return (images, end) == (num_images, num_bytes)


def read_manifest(folder: Path, *, origin: str) -> dict[str, Any]:
    """Read the manifest of a pack.

    Raises:
        RequestError: It is damaged, has a newer format, or lists no images.
    """
    try:
        manifest = json.loads(read_regular(folder / MANIFEST))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{origin}/{MANIFEST} cannot be read ({' '.join(str(error).split())}): {_REMEDY}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RequestError(f'{origin}/{MANIFEST} does not belong to a pack; expected "format": "{FORMAT}": {_REMEDY}')
    version = manifest.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise RequestError(
            f"{origin} is a pack of format version {version}; expected {VERSION} or less: update fastmim"
        )
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(manifest.get(name, ...), kind)]
    if not wrong:
        wrong = [name for name, valid in _contents(manifest).items() if not valid]
    if wrong:
        raise RequestError(f"{origin}/{MANIFEST} has invalid values for {', '.join(wrong)}: {_REMEDY}")
    if manifest["num_images"] < 1:
        raise RequestError(f"the pack {origin} holds no images; expected at least one: {_REMEDY}")
    return manifest


def _contents(manifest: dict[str, Any]) -> dict[str, bool]:
    """Whether the fields hold what they should, beyond their types. Other names in `files` are not looked at."""
    files = [manifest["files"].get(name) for name in (IMAGES, INDEX, NAMES)]
    return {
        "codec": manifest["codec"] in CODECS,
        "num_images": is_count(manifest["num_images"]),
        "classes": all(isinstance(name, str) for name in manifest["classes"] or []),
        "range": is_range(manifest.get("range", "8bit")),
        "files": all(isinstance(file, dict) and is_count(file.get("bytes")) for file in files)
        and all(is_count(file.get("crc32")) for file in files[1:]),
    }


def find_damage(folder: Path, *, origin: str, show: Callable[[int], None] = lambda num_bytes: None) -> list[str]:
    """Compare all files of a pack with their checksums.

    Args:
        show: Called with the number of bytes of images.bin read so far.

    Returns:
        A description of each damaged block or file; empty if the pack is intact.

    Raises:
        RequestError: The pack cannot be opened.
    """
    packed = open_packed(folder, origin=origin)
    manifest = read_manifest(folder, origin=origin)
    damage = [
        f"{name} (all of it)" for name in (INDEX, NAMES) if crc32(folder / name) != manifest["files"][name]["crc32"]
    ]
    named = not damage  # the names of images are intact
    with (folder / IMAGES).open("rb") as file:
        first = 0
        for number, block in enumerate(manifest["blocks"]):
            checksum, left = 0, block["end"] - file.tell()
            while left and (chunk := file.read(min(left, _CHUNK))):
                checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
                show(file.tell())
            last = block["num_images"] - 1 + first
            if checksum != block["crc32"]:
                names = f", {packed.name(first)} to {packed.name(last)}" if named else ""
                damage.append(f"block {number} (images {first:,} to {last:,}{names})")
            first = last + 1
    return damage


def _truncated_block(manifest: dict[str, Any], size: int) -> str:
    blocks = manifest["blocks"]
    number = next((number for number, block in enumerate(blocks) if block["end"] > size), None)
    return "" if number is None else f", truncated in block {number} of {len(blocks)}"


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
