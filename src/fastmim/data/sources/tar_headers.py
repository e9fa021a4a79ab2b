"""The members of an uncompressed tar, located by its headers alone.

It replaces the standard library's tarfile, which is slower and which at a damaged header ends as if the tar were
complete, so that the images behind it would be lost silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from fastmim.system.files import read_at

_BLOCK = 512
_FILES = b"0\x007"
_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes; a size in their header means nothing
TRUNCATED = "it is truncated"
"""The reason in `TarDamage` if the tar ends before its end mark."""

_MAX_NAME = 1 << 20  # bytes in a long name or a pax header


class Member(NamedTuple):
    """A regular file in a tar."""

    name: bytes
    offset: int
    length: int


class TarDamage(ValueError):  # noqa: N818 - describes the file
    """The tar cannot be read beyond byte `position`; the message says why."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.position = position


def members(fd: int) -> Iterator[Member]:
    """Yield the regular files of a tar in order: USTAR, GNU (long names, sizes in base 256) and pax.

    Links, devices, folders and sparse files are skipped. Names are taken from the headers unchecked, absolute or
    with "..", because nothing is ever written under them.

    Raises:
        TarDamage: A header is corrupted, or the tar ends before its end mark. The members before it are sound.
    """
    end = os.fstat(fd).st_size
    position = start = 0  # `start` is where the member's first header begins
    name: bytes | None = None
    pax: dict[bytes, bytes] = {}
    while any(header := read_at(fd, _BLOCK, position)):
        kind, length, plain_name = _parse(header, start)
        position += _BLOCK
        if kind == b"S":
            position = _skip_sparse_map(fd, header, position)
        if kind in _FILES and b"size" in pax:
            length = _decimal(pax[b"size"], start)
        if kind in _WITHOUT_DATA:
            length = 0
        if position + length > end:
            raise TarDamage(TRUNCATED, start)
        if kind in b"LKxg":
            if length > _MAX_NAME:
                raise TarDamage(f"a header of {length} bytes", start)
            data = read_at(fd, length, position)
            if kind == b"L":
                name = data.split(b"\0", 1)[0]
            elif kind == b"x":
                pax = _records(data, start)
        else:
            full = name or pax.get(b"path") or plain_name
            if kind in _FILES and not full.endswith(b"/") and not any(key.startswith(b"GNU.sparse") for key in pax):
                yield Member(full, position, length)
            name, pax = None, {}
        position += -(-length // _BLOCK) * _BLOCK
        if name is None and not pax:
            start = position
    if not header:
        raise TarDamage(TRUNCATED, start)


def _parse(header: bytes, start: int) -> tuple[bytes, int, bytes]:
    """Parse a header block into type, length and name (POSIX.1-1988, section 10.1.1)."""
    if len(header) < _BLOCK:
        raise TarDamage(TRUNCATED, start)
    checksum = sum(header[:148]) + 8 * 0x20 + sum(header[156:])  # the checksum field itself counts as spaces
    if _number(header[148:156], start) != checksum:
        raise TarDamage("a header's checksum is wrong", start)
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    return header[156:157], _number(header[124:136], start), name


def _number(field: bytes, start: int) -> int:
    """Parse octal digits, or GNU's base 256 if the first bit is set."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    try:
        number = int(digits or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:
        raise TarDamage(f"a header has {digits!r} for a number", start)
    return number


def _decimal(digits: bytes, start: int) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise TarDamage(f"a header has {digits[:20]!r} for a number", start)
    return int(digits)


def _records(data: bytes, start: int) -> dict[bytes, bytes]:
    """Parse a pax header: records of "length key=value\\n", whose length counts the whole record."""
    records = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        end = position + _decimal(data[position : max(space, position)], start)
        key, equals, value = data[space + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise TarDamage("a pax header is corrupted", start)
        records[key] = value[:-1]
        position = end
    return records


def _skip_sparse_map(fd: int, header: bytes, position: int) -> int:
    """Skip the blocks in which GNU's old format continues the map of a sparse file."""
    more = header[482]
    while more:
        block = read_at(fd, _BLOCK, position)
        more = block[504] if len(block) == _BLOCK else 0
        position += _BLOCK
    return position
