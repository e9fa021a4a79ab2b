"""A directory's lock: one process at a time, and those that it starts, write to it.

`filelock.FileLock` keeps its file descriptor to itself, while a study's trial processes must inherit it, so that a
study that is started again after `kill -9` waits for them; `filelock.lock_descriptor` locks a descriptor of ours.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from fastmim.errors import RequestError

WAIT_SECONDS = 60.0
"""How long to wait for a process that was told to stop and is still saving, or for the workers of a killed run."""

FILE = ".lock"
_POLL_SECONDS = 0.1


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
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        file = _acquire(folder, say, out or folder)
    except OSError as error:
        raise RequestError(f"out is {out or folder}: {error.strerror}; expected a path that can be written") from None
    with file:
        try:
            yield file.fileno()
        finally:
            (folder / FILE).unlink(missing_ok=True)
            with suppress(OSError):  # the directory is not empty, or was renamed to `out`
                for path in made:
                    path.rmdir()


def _acquire(folder: Path, say: Callable[[str], object], out: Path) -> IO[str]:
    began: float | None = None
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / FILE).open("w")
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
            say(f"{out} is in use by another process; waiting up to {WAIT_SECONDS:.0f} s for it to end")
        if time.monotonic() > began + WAIT_SECONDS:
            raise RequestError(
                f"out is {out}, where another process is at work; expected a free path: take another, or end that "
                f"process"
            )
        time.sleep(_POLL_SECONDS)


def clear(folder: Path) -> None:
    """Empty a directory that `hold` has locked."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != FILE:
            path.unlink()
