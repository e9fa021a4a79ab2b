"""A pack: images shrunk once and stored in one file, read by offset (docs/packed-format.md)."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastmim.data.decode import BadImage
from fastmim.errors import RequestError
from fastmim.system.files import crc32, read_json

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

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __len__(self) -> int:
        return self.num_images

    def read(self, index: int) -> bytes | np.ndarray:
        offset, _, _, _, length, height, width, channels = self._rows[index].item()
        if self.codec == "jpeg":
            return self._bytes[offset : offset + length]
        try:
            return self._pixels[offset : offset + length].reshape(height, width, channels)
        except ValueError:
            raise BadImage(f"its row in {INDEX} is damaged: see fastmim pack --verify {self.folder}") from None

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
        return np.asarray(np.load(self.folder / INDEX, mmap_mode="r", allow_pickle=False))

    @cached_property
    def _bytes(self) -> mmap.mmap:
        return _map(self.folder / IMAGES)

    @cached_property
    def _pixels(self) -> np.ndarray:
        return np.frombuffer(self._bytes, dtype=np.uint8)

    @cached_property
    def _names(self) -> mmap.mmap:
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
    for name, file in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise RequestError(f"{origin}/{name} of the pack cannot be read: {error.strerror}; {_REMEDY}") from None
        if size != file["bytes"]:
            first = _truncated_block(manifest, size) if name == IMAGES else ""
            raise RequestError(f"{origin}/{name} has {size:,} bytes; expected {file['bytes']:,}{first}: {_REMEDY}")
    try:
        rows = np.load(folder / INDEX, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(f"{origin}/{INDEX} cannot be read ({' '.join(str(error).split())}): {_REMEDY}") from None
    if rows.dtype.names and "label" in rows.dtype.names and rows.dtype["label"].kind not in "iu":
        raise RequestError(f"{origin}/{INDEX} has labels of type {rows.dtype['label']}; expected int64: {_REMEDY}")
    if rows.dtype != ROW or rows.shape != (manifest["num_images"],):
        raise RequestError(
            f"{origin}/{INDEX} holds {rows.dtype} {rows.shape}; expected {ROW} ({manifest['num_images']},): {_REMEDY}"
        )
    about = {name: manifest[name] for name in ("codec", "num_images", "root", "classes", "labelled")}
    return Packed(origin=origin, folder=folder.absolute(), **about)


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


def read_manifest(folder: Path, *, origin: str) -> dict[str, Any]:
    """Read the manifest of a pack.

    Raises:
        RequestError: It is damaged, has a newer format, or lists no images.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError) as error:
        raise RequestError(f"{origin}/{MANIFEST} cannot be read ({' '.join(str(error).split())}): {_REMEDY}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RequestError(f'{origin}/{MANIFEST} does not belong to a pack; expected "format": "{FORMAT}": {_REMEDY}')
    version = manifest.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise RequestError(
            f"{origin} is a pack of format version {version}; expected {VERSION} or less: update fastmim"
        )
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(manifest.get(name, ...), kind)]
    if not wrong and manifest["codec"] not in CODECS:
        wrong = ["codec"]
    if wrong:
        raise RequestError(f"{origin}/{MANIFEST} has invalid values for {', '.join(wrong)}: {_REMEDY}")
    if manifest["num_images"] < 1:
        raise RequestError(f"the pack {origin} holds no images; expected at least one: {_REMEDY}")
    return manifest


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


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
