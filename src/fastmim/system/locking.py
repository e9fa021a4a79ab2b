"""One writer for a directory at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fastmim.errors import RequestError

WAIT_SECONDS = 60.0
"""For what was told to stop and is still saving; data processes of a killed run need a second."""

FILE = ".lock"
_POLL_SECONDS = 0.1


@contextmanager
def hold(folder: Path, say: Callable[[str], object], *, out: Path | None = None) -> Iterator[int]:
    """Keep a directory to this process and those that it starts, however they end.

    The directory is made if need be, with those above it, and all that is removed again if nothing was written.

    Args:
        folder: What is written to.
        say: Takes a line for the reader.
        out: What the user calls it, where that is not the directory.

    Yields:
        The file descriptor that does it, for processes that are to hold the directory too.

    Raises:
        RequestError: another process has held it for a minute, or it cannot be written.
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
            with suppress(OSError):  # not empty, or it has become `out`
                for path in made:
                    path.rmdir()


def _acquire(folder: Path, say: Callable[[str], object], out: Path) -> IO[str]:
    began: float | None = None
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / FILE).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                file.close()
                raise
            say(f"{folder} is on a file system without locks: see that nothing else writes to it")
            return file
        else:
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # of one who has just gone
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
    """Remove what is in a directory that `hold` holds."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != FILE:
            path.unlink()
