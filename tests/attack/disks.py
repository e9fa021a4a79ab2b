"""A file system that fails at a random operation: full, over quota, broken, read-only, or with a file limit."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from attack import forks, kills
from attack.outcome import Outcome, unclean
from attack.world import World

PROMISE = "a failing disk: one line, the last state kept, and the same bits afterwards"
CASES = 120
SECONDS = 200
KINDS = ("plain", "staged", "spoilt", "finetune", "pack", "embed")
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
NEVER = 1 << 40


class Disk:
    """Counts what is asked of the file system below a folder, and fails at the n-th operation, or from then on."""

    def __init__(self, folder: Path, error: int, fails_at: int, *, stays: bool, report: Path) -> None:
        self.folder, self.error, self.fails_at, self.stays = f"{folder}", error, fails_at, stays
        self.report, self.count, self.busy = report, 0, False

    def ask(self, *paths: Any) -> None:
        """Count an operation on paths; raise OSError if it is to fail."""
        if self.busy or not any(isinstance(p, str | bytes | Path) and self._mine(p) for p in paths):
            return
        self.count += 1
        self.busy = True
        self.report.write_text(str(self.count))
        self.busy = False
        if self.count == self.fails_at or (self.stays and self.count > self.fails_at):
            raise OSError(self.error, os.strerror(self.error), os.fsdecode(paths[0]))

    def _mine(self, path: Any) -> bool:
        return str(Path(os.fsdecode(path)).absolute()).startswith(self.folder)

    def mount(self) -> None:
        """Put this process, and its workers, on this disk."""
        events = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
        plain_open, plain_fsync, plain_write = io.open, os.fsync, os.write
        serialize = safetensors.torch.serialize_file

        def hook(event: str, args: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if event in events or writes:
                self.ask(*args[:2] if event == "os.rename" else args[:1])

        def open_file(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
            writes = set(mode) & set("wax+")
            if not writes or isinstance(file, int) or not self._mine(file):
                return plain_open(file, mode, buffering, *args, **options)
            raw = _Raw(self, file, mode.replace("t", "").replace("b", ""))
            stream: Any = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            if "b" in mode:
                return raw if buffering == 0 else stream
            return io.TextIOWrapper(stream, *args, line_buffering=buffering == 1, write_through=False, **options)

        def on_descriptor(plain: Callable[..., Any]) -> Callable[..., Any]:
            def call(descriptor: int, *args: Any) -> Any:
                self.ask(Path(f"/proc/self/fd/{descriptor}").readlink())
                return plain(descriptor, *args)

            return call

        def serialize_file(tensors: Any, file: Any, metadata: Any = None) -> None:
            try:
                self.ask(file)
            except OSError as error:
                raise SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from None
            serialize(tensors, file, metadata)

        io.open = builtins.open = open_file  # type: ignore[assignment]
        os.fsync, os.write = on_descriptor(plain_fsync), on_descriptor(plain_write)
        safetensors.torch.serialize_file = serialize_file
        sys.addaudithook(hook)


class _Raw(io.FileIO):
    def __init__(self, disk: Disk, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data: Any) -> int:
        self.disk.ask(self.name)
        return super().write(data)


def prepare(world: World) -> None:
    """Run every command undisturbed, and count its operations."""
    kills.undisturbed(world, KINDS)
    for kind in KINDS:
        out = world.shared / "counted" / kind
        out.parent.mkdir(exist_ok=True)
        disk = Disk(out, 0, NEVER, stays=False, report=world.shared / f"{kind}.count")
        forks.run(kills.commands(world, out, 0)[kind], world.log(kind), seconds=300, before=disk.mount)


def attempt(world: World, random: Random, number: int) -> Outcome:
    """Let a command fail once or twice on a bad disk, then run it on a good one."""
    kind, workers = random.choice(KINDS), random.choice((0, 1))
    out = world.folder / kind
    arguments = kills.commands(world, out, workers)[kind]
    total = int((world.shared / f"{kind}.count").read_text())
    outcome = Outcome(tries=0, did=f"fastmim {' '.join(arguments)};")
    for _ in range(random.randint(1, 2)):
        error, at, stays = random.choice(ERRORS), random.randint(1, total), random.random() < 0.5
        if random.random() < 0.25:  # in /dev/shm too, for workers
            limit = random.randint(1, 400_000)
            outcome.did += f" files of at most {limit} bytes,"
            ended = forks.run(arguments, world.log(), before=lambda limit=limit: _limit(limit))
        else:
            outcome.did += f" {errno.errorcode[error]} {'from' if stays else 'at'} operation {at} of {total},"
            disk = Disk(out, error, at, stays=stays, report=Path(f"{world.log()}.count"))
            ended = forks.run(arguments, world.log(), before=disk.mount)
        outcome.tries += 1
        outcome.faults += unclean(ended, allowed=[0, 1, 2])
    saved = any((out / "checkpoints").glob("step_*"))
    ended = forks.run(arguments, world.log(), seconds=120)
    outcome.faults += [f"on a good disk again: {fault}" for fault in unclean(ended, allowed=[0])]
    if saved and not ended.status and "resuming at step" not in ended.out and "done" not in ended.out:
        outcome.faults.append("lost: there was a checkpoint, but the run began anew")
    return Outcome(outcome.tries, outcome.faults + _differences(world, kind, out, ended.status), outcome.did)


def _differences(world: World, kind: str, out: Path, status: int) -> list[str]:
    return kills.differences(world.shared / kind, out) if status == 0 else []


def _limit(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
