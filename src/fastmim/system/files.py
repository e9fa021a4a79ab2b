"""Files that appear whole or not at all; checksums; flushing to the disk; reading files of unknown origin."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastmim.errors import RequestError, RunError, first_line, shown

MAX_BYTES = 1 << 30
"""The largest file of unknown origin that is read, in bytes."""

_CHUNK = 1 << 22
_seeking = threading.Lock()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path near `path`; when the block ends, what it wrote there replaces `path`.

    The file is flushed to the disk before it is renamed, so a crash leaves either the old file or the new one. If
    the block raises, `path` is untouched. The temporary file has a folder of its own beside `path`, as writers such as
    safetensors make temporary files beside it; `remove_leftovers` removes the folder after a kill.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    folder.mkdir(exist_ok=True)
    try:
        yield folder / path.name
        fsync(folder / path.name)
        (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a kill left while `path` was being replaced; no other process may be replacing it."""
    for folder in path.parent.glob(f".{path.name}.*.tmp"):
        remove(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Write a JSON file; see `replacing`."""
    text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 holds surrogates; Python's escape of one is also JSON's.
    write_text(path, text.encode("utf-8", "backslashreplace").decode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote.

    Raises:
        RunError: the file is damaged.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(read_regular(path))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({first_line(error)}); expected JSON: restore or remove it") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} holds {shown(content)}; expected a JSON object: restore or remove it")
    return content


def open_regular(path: str | bytes | Path) -> int:
    """Open a regular file for reading, and never wait for a pipe or a device; return its file descriptor.

    Raises:
        OSError: there is no such file, or it is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def read_regular(path: str | Path) -> bytes:
    """Read a regular file of at most `MAX_BYTES`.

    Raises:
        OSError: as `open_regular`, or it is larger, or a reader would have to wait.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"larger than {MAX_BYTES >> 20} MiB")
        data = file.read()
        if data is None:  # /proc/kmsg passes for a regular file, but its readers wait for more
            raise OSError(errno.EAGAIN, "not a regular file")
        return data


def remove(path: Path) -> None:
    """Remove a directory, a file or a link if it exists; never what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def expanded(path: str) -> Path:
    """Expand ~ and ~user at the start of a path.

    Raises:
        RequestError: There is no such user, or nobody knows the home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise RequestError(f"{path} begins with a home directory that is not known; write the path in full") from None


def is_folder(path: str | Path) -> bool:
    """Whether this is a folder; False for what cannot be a path, because it is too long or has a NUL."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir may raise


def exists(path: str | Path) -> bool:
    """Whether there is such a file or folder; False as for `is_folder`."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists may raise


def crc32(path: Path) -> int:
    """The CRC-32 checksum of a file's contents; OSError as `open_regular`."""
    checksum = 0
    with os.fdopen(open_regular(path), "rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Read up to `length` bytes from a position in an open file, whatever other threads and processes read from it."""
    if sys.platform == "win32":  # which only reads where the file stands; its processes do not share open files
        with _seeking:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, length)
    else:
        data = os.pread(descriptor, length, offset)
    return data


def fsync(path: Path) -> None:
    """Flush a file to the disk, or a directory's list of names; Windows keeps the latter safe itself."""
    flags = os.O_RDONLY
    if sys.platform == "win32":  # it opens no directories, and flushes only what is open for writing
        if path.is_dir():
            return
        flags = os.O_RDWR | os.O_BINARY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
