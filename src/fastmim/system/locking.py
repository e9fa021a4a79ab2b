"""A directory's lock: one process at a time, and those that it starts, write to it.

`filelock.FileLock` keeps its file descriptor to itself, while a study's trial processes must inherit it, so that a
study that is started again after `kill -9` waits for them; `filelock.lock_descriptor` locks a descriptor of ours.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from fastmim.errors import RequestError
from fastmim.system.processes import check_main_guard

WAIT_SECONDS = 60.0
"""How long to wait for a process that was told to stop and is still saving, or for the workers of a killed run."""

FILE = ".lock"
_POLL_SECONDS = 0.1
_MAX_LOST = 100  # times that a directory vanishes before it counts as one that cannot be made


@contextmanager
def hold(folder: Path, say: Callable[[str], object], *, out: Path | None = None) -> Iterator[int]:
    """Lock a directory while the block runs, and for as long as a process that inherited the lock lives.

    The directory is created with its parents; if nothing is written, whatever was created is removed again.

    Args:
        folder: The directory.
        say: Prints a line for the user.
        out: The path that messages name, if not the directory.

    Yields:
        The lock's file descriptor, for child processes to inherit.

    Raises:
        RequestError: another process has held the lock for a minute, or the directory cannot be written.
    """
    check_main_guard()
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        file = _acquire(folder, say, out or folder)
    except OSError as error:
        raise RequestError(
            f"out is {out or folder}: {error.strerror or error}; expected a path that can be written"
        ) from None
    with file:
        try:
            yield file.fileno()
        finally:
            if sys.platform == "win32":  # an open file cannot be removed there
                file.close()
            with suppress(OSError):  # the directory is not empty, or was renamed to `out`
                _lock_file(folder).unlink(missing_ok=True)
                for path in made:
                    path.rmdir()


@contextmanager
def staging(out: Path, say: Callable[[str], object]) -> Iterator[Path]:
    """Yield an empty directory beside `out`, to write what is then moved there; it is removed in the end.

    It is locked, so what is found in it was left by a kill, and is removed too.

    Raises:
        RequestError: as `hold`.
    """
    folder = out.absolute().with_name(f".{out.absolute().name}.tmp")
    with hold(folder, say, out=out):
        clear(folder)
        try:
            (folder / "new").mkdir()
            yield folder / "new"
        finally:
            clear(folder)
    with suppress(OSError):  # it was there already
        folder.rmdir()


def _acquire(folder: Path, say: Callable[[str], object], out: Path) -> IO[bytes]:
    began: float | None = None
    num_lost = 0
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = _open(_lock_file(folder))
        except FileNotFoundError:  # the previous holder has just removed the directory
            num_lost += 1
            if num_lost > _MAX_LOST:
                raise
            time.sleep(_POLL_SECONDS / 10)
            continue
        try:
            locked = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                file.close()
                raise
            say(f"{folder} is on a file system without locks: make sure that nothing else writes to it")
            return file
        if locked and os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
        if locked:  # a file that the previous holder has just removed
            continue
        if began is None:
            began = time.monotonic()
            who = _holder(_lock_file(folder))
            say(f"{out} is in use by another process{who}; waiting up to {WAIT_SECONDS:.0f} s for it to end")
        if time.monotonic() > began + WAIT_SECONDS:
            raise RequestError(
                f"out is {out}, where another process{_holder(_lock_file(folder))} is at work; expected a free path: "
                f"take another, or end that process"
            )
        time.sleep(_POLL_SECONDS)


def _lock_file(folder: Path) -> Path:
    """The lock of a directory: in it, or beside it on Windows, which renames no directory with an open file in it."""
    if sys.platform == "win32" and (name := folder.absolute().name):
        return folder.absolute().with_name(f".{name}.lock")
    return folder / FILE


def _holder(path: Path) -> str:
    """The process that holds a lock, as far as Linux tells: it knows those of this machine."""
    try:
        inode = str(path.stat().st_ino)
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            _, kind, *_, process, place, _, _ = line.split()  # "1: FLOCK ADVISORY WRITE 4711 08:01:2345 0 EOF"
            if kind == "FLOCK" and place.split(":")[-1] == inode and int(process) > 0:
                return f" ({process})"
    except (OSError, ValueError):
        pass
    return ""


def _open(path: Path) -> IO[bytes]:
    """Open a lock file without following a link, waiting for a pipe, or changing what the file holds."""
    flags = os.O_RDWR | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    if path.is_symlink():  # for systems without O_NOFOLLOW, and for the message
        raise OSError(errno.ELOOP, f"{path.name} in it is a link; remove it")
    return os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)


def clear(folder: Path) -> None:
    """Empty a directory that `hold` has locked."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != FILE:
            path.unlink()
