"""Files that grow during a long pass over images: what was committed survives a kill, and the pass resumes there."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console

from fastmim.errors import RequestError, RunError
from fastmim.system import locking
from fastmim.system.files import open_regular, read_regular, remove, write_json
from fastmim.system.progress import progress
from fastmim.system.signals import Stopped, StopSignals

PROGRESS = "progress.json"
_VERSION = 2
_CHUNK = 1 << 22


def partial_folder(out: Path) -> Path:
    """The folder that holds an output until it is complete; RequestError for the root of the file system."""
    if not (name := out.absolute().name):
        raise RequestError(f"out is {out}; expected a path with a name")
    return out.absolute().with_name(f"{name}.partial")


@contextmanager
def hold(out: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Lock `<out>.partial` while the block runs (`locking.hold`), and leave no empty folder, whoever made it."""
    try:
        with locking.hold(partial_folder(out), say, out=out):
            yield
    finally:
        with suppress(OSError):  # it holds something, is in use, or became `out`
            partial_folder(out).rmdir()


class Images(Protocol):
    """What a pass reads: a `fastmim.data.sources.Source`."""

    @property
    def origin(self) -> str: ...
    def __len__(self) -> int: ...
    def name(self, index: int, /) -> str: ...


class GrowingFiles:
    """Files in `<out>.partial` that only grow. Its lock (`hold`) must be held.

    `progress.json` is replaced at each commit. It holds the caller's facts, and the length and checksum of each file at
    that moment. `recover` compares the files with them, and cuts off whatever a kill left beyond these lengths.

    Args:
        out: What the files will become.
        names: The files.
        overwrite: Remove what an interrupted pass left.

    Raises:
        RunError: what an interrupted pass recorded is damaged, or another version wrote it.
        OSError: the folder cannot be read or written.
    """

    def __init__(self, out: Path, names: Iterable[str], *, overwrite: bool = False) -> None:
        self.folder = partial_folder(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            locking.clear(self.folder)
        for path in self.folder.glob("*.tmp"):  # a kill interrupted the replacement of a file
            remove(path)
        self.lengths: dict[str, int] = dict.fromkeys(names, 0)
        self.checksums: dict[str, int] = dict.fromkeys(self.lengths, 0)
        """The CRC-32 of everything appended to each file."""
        self.committed: dict[str, Any] = {}
        """The facts of the last commit; empty before the first one."""
        self.num_saved = 0
        """The number of images that the last commit covers."""
        self._last_name = ""
        self._files: dict[str, IO[bytes]] = {}
        if (self.folder / PROGRESS).exists():
            self._read_progress()

    def _read_progress(self) -> None:
        try:
            record = json.loads(read_regular(self.folder / PROGRESS))
            valid = isinstance(record, dict) and record.get("version") == _VERSION and _valid(record, self.lengths)
        except (ValueError, RecursionError):
            valid = False
        if not valid:
            raise self.damage(PROGRESS, "is damaged, or another version of fastmim wrote it")
        self.committed, self.num_saved, self._last_name = record["facts"], record["num_read"], record["last_name"]
        self.lengths, self.checksums = record["bytes"], record["crc32"]

    def damage(self, name: str, what: str) -> RunError:
        """The error for a file that is not as it was committed."""
        return RunError(
            f"{self.folder / name} {what}; expected what the interrupted call saved: start over with --overwrite"
        )

    def failure(self, error: OSError, num_images: int) -> RunError:
        """The error for a file that could not be written, and what is safe."""
        return RunError(
            f"could not write {self.folder}: {error.strerror or error}; the first {self.num_saved:,} of {num_images:,} "
            f"images are safe: free space or mend the disk, and run the same command to resume"
        )

    def recover(self) -> None:
        """Compare the files with the last commit, and cut off what was written after it.

        Raises:
            RunError: a file has lost or changed what was committed.
            OSError: a file cannot be read or written.
        """
        for name, length in self.lengths.items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else 0
            if size < length:
                raise self.damage(name, f"has {size:,} bytes, fewer than the {length:,} that were saved")
            for _ in self._saved(name):
                pass
            with self._open(name) as file:
                file.truncate(length)

    def _saved(self, name: str) -> Iterator[bytes]:
        """Read what has been appended to a file, and compare it with its checksum at the end."""
        checksum, left = 0, self.lengths[name]
        if not left:
            return
        with os.fdopen(open_regular(self.folder / name), "rb") as file:
            while left and (chunk := file.read(min(left, _CHUNK))):
                checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
                yield chunk
        if left or checksum != self.checksums[name]:
            raise self.damage(name, "differs from its checksum")

    def copy(self, name: str, to: str, *, header: bytes = b"") -> int:
        """Write a header and what has been appended to a file to another one in the folder; return its CRC-32.

        Raises:
            RunError: the file has lost or changed what was appended.
            OSError: a file cannot be read or written.
        """
        checksum = zlib.crc32(header)
        (self.folder / to).unlink(missing_ok=True)
        with (self.folder / to).open("xb") as file:
            file.write(header)
            for chunk in self._saved(name):
                checksum = zlib.crc32(chunk, checksum)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return checksum

    def _open(self, name: str) -> IO[bytes]:
        """Open a file for appending; a link is refused (OSError), since it would lead elsewhere."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        # Unbuffered, so that closing a file never retries what a full disk refused.
        return os.fdopen(os.open(self.folder / name, flags, 0o666), "ab", buffering=0)

    def differences(self, key: str, settings: Mapping[str, Any]) -> str:
        """The changes from the settings committed under `key`, such as "block -1 -> 0; seed 0 -> 1"; "" if none."""
        now = json.loads(json.dumps(settings))
        before = self.committed.get(key, now)
        if not isinstance(before, dict):
            raise self.damage(PROGRESS, "is damaged")
        changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        return "; ".join(f"{name} {before.get(name)!r} -> {now.get(name)!r}" for name in changed)

    def grow(
        self,
        images: Images,
        steps: Iterable[int],
        facts: Callable[[], Mapping[str, Any]],
        *,
        seconds: float,
        console: Console,
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        """Open the files and run the steps; return early, with everything committed, if a signal asks for it.

        Args:
            images: What the pass reads.
            steps: Each one appends and yields the number of images read since the start of the pass.
            facts: Returns what to record at a commit (JSON types).
            seconds: Time between commits; a kill loses no more work than this.
            console: Shows the progress.
            agree: Called after each step with whether a signal has come; returns whether to stop.

        Raises:
            RequestError: the image that an earlier call read last is no longer at its position.
            OSError: a file cannot be written.
        """
        done = self.num_saved
        if done and (done > len(images) or images.name(done - 1) != self._last_name):
            there = images.name(done - 1) if done <= len(images) else "missing"
            raise RequestError(
                f"data is {images.origin}, whose image {done} is {there}; expected "
                f"{self._last_name}, as when this began: give it the same images, or start over with "
                f"--overwrite"
            )
        if done:
            console.print(f"resuming at image {done:,} of {len(images):,}")
        committed = time.monotonic()
        signals = StopSignals(answer="stopping after these images; again to leave without saving")
        with ExitStack() as stack, signals as stop, progress(console, total=len(images), done=done) as show:
            self._files = {name: stack.enter_context(self._open(name)) for name in self.lengths}
            try:
                for done in steps:
                    stopping = agree(stop.requested)
                    if done == len(images) or stopping or time.monotonic() - committed > seconds:
                        self._commit(done, images.name(done - 1), facts())
                        committed = time.monotonic()
                    show(done)
                    if stopping:
                        return
            except Stopped:  # no images came; all that came before have been appended
                if done > self.num_saved:
                    self._commit(done, images.name(done - 1), facts())

    def append(self, name: str, content: bytes | memoryview) -> None:
        """Write at the end of a file, within `grow`."""
        view = memoryview(content)
        self.lengths[name] += len(view)
        self.checksums[name] = zlib.crc32(view, self.checksums[name])
        while view:
            view = view[self._files[name].write(view) :]

    def _commit(self, num_read: int, last_name: str, facts: Mapping[str, Any]) -> None:
        """Make everything appended so far survive a kill, and record facts about it."""
        for file in self._files.values():
            os.fsync(file.fileno())
        record = {"version": _VERSION, "num_read": num_read, "last_name": last_name, "facts": facts}
        record |= {"bytes": self.lengths, "crc32": self.checksums}
        write_json(self.folder / PROGRESS, record, indent=None)
        self.committed, self.num_saved, self._last_name = dict(facts), num_read, last_name


def is_count(value: Any) -> bool:
    """Whether a value from a file is an integer that can count images or bytes."""
    return type(value) is int and 0 <= value < 1 << 63


def _valid(record: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether a record has the fields of a commit, about these files and no others."""
    counts = [record.get("bytes"), record.get("crc32")]
    return (
        all(
            isinstance(each, dict) and each.keys() == set(names) and all(map(is_count, each.values()))
            for each in counts
        )
        and is_count(record.get("num_read"))
        and isinstance(record.get("last_name"), str)
        and isinstance(record.get("facts"), dict)
    )
