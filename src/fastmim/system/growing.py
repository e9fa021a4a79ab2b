"""Files that grow during a long pass over images: what was committed survives a kill, and the pass resumes there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console

from fastmim.errors import RequestError
from fastmim.system import locking
from fastmim.system.files import read_json, write_json
from fastmim.system.progress import progress
from fastmim.system.signals import StopSignals

PROGRESS = "progress.json"


def partial_folder(out: Path) -> Path:
    """The folder that holds an output until it is complete."""
    return out.absolute().with_name(out.absolute().name + ".partial")


class Images(Protocol):
    """What a pass reads: a `fastmim.data.sources.Source`."""

    @property
    def origin(self) -> str: ...
    def __len__(self) -> int: ...
    def name(self, index: int, /) -> str: ...


class GrowingFiles:
    """Files in `<out>.partial` that only grow. Its lock (`locking.hold`) must be held.

    `progress.json` is replaced at each commit. It holds the caller's facts and the length of each file at that
    moment; whatever a kill left beyond these lengths is cut off when the pass resumes.

    Args:
        out: What the files will become.
        names: The files.
        overwrite: Remove what an interrupted pass left.

    Raises:
        OSError: the folder cannot be read or written.
    """

    def __init__(self, out: Path, names: Iterable[str], *, overwrite: bool = False) -> None:
        self.folder = partial_folder(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            locking.clear(self.folder)
        for path in self.folder.glob("*.tmp"):  # a kill interrupted the replacement of a file
            path.unlink()
        recorded = self.folder / PROGRESS
        self.committed: dict[str, Any] = read_json(recorded) if recorded.exists() else {}
        """The facts of the last commit; empty before the first one."""
        self.lengths: dict[str, int] = dict.fromkeys(names, 0) | self.committed.get("bytes", {})
        self._files: dict[str, IO[bytes]] = {}

    def differences(self, key: str, settings: Mapping[str, Any]) -> str:
        """The changes from the settings committed under `key`, such as "block -1 -> 0; seed 0 -> 1"; "" if none."""
        now = json.loads(json.dumps(settings))
        before = self.committed.get(key, now)
        changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        return "; ".join(f"{name} {before.get(name)!r} -> {now.get(name)!r}" for name in changed)

    def grow(
        self,
        images: Images,
        steps: Iterable[int],
        commit: Callable[[int, str], None],
        *,
        done: int,
        seconds: float,
        console: Console,
    ) -> None:
        """Open the files and run the steps; return early, with everything committed, if a signal asks for it.

        Args:
            images: What the pass reads.
            steps: Each one appends and yields the number of images read since the start of the pass.
            commit: Receives that number and the name of the last image, and calls `self.commit` with both.
            done: Images that an earlier call has read.
            seconds: Time between commits; a kill loses no more work than this.
            console: Shows the progress.

        Raises:
            RequestError: the image that an earlier call read last is no longer at its position.
            OSError: a file cannot be written.
        """
        if done and images.name(done - 1) != self.committed["last_name"]:
            raise RequestError(
                f"data is {images.origin}, whose image {done} is {images.name(done - 1)}; expected "
                f"{self.committed['last_name']}, as when this began: give it the same images, or start over with "
                f"--overwrite"
            )
        if done:
            console.print(f"resuming at image {done:,} of {len(images):,}")
        committed = time.monotonic()
        with ExitStack() as stack, StopSignals() as stop, progress(console, total=len(images), done=done) as show:
            for name, length in self.lengths.items():
                # Unbuffered, so that closing a file never retries what a full disk refused.
                self._files[name] = stack.enter_context((self.folder / name).open("ab", buffering=0))
                os.truncate(self.folder / name, length)
            for num_read in steps:
                if num_read == len(images) or stop.requested or time.monotonic() - committed > seconds:
                    commit(num_read, images.name(num_read - 1))
                    committed = time.monotonic()
                show(num_read)
                if stop.requested:
                    return

    def append(self, name: str, content: bytes | memoryview) -> None:
        """Write at the end of a file, within `grow`."""
        view = memoryview(content)
        self.lengths[name] += len(view)
        while view:
            view = view[self._files[name].write(view) :]

    def commit(self, facts: Mapping[str, Any]) -> None:
        """Make everything appended so far survive a kill, and record facts about it (JSON types), within `grow`."""
        for file in self._files.values():
            os.fsync(file.fileno())
        self.committed = {**facts, "bytes": dict(self.lengths)}
        write_json(self.folder / PROGRESS, self.committed, indent=None)
