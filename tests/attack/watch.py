"""Commands on hostile input, watched: no program is started, no connection made, nothing written elsewhere."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attack import forks
from attack.outcome import Outcome, tree, unclean
from attack.world import World

SECONDS = 60
MEMORY = 4 << 30

_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.fork"}
_NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"}
_PICKLE = {"pickle.find_class"}
# How many paths each takes; the first ones act on a link, the others on what it points to.
_NAMES = {
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "shutil.rmtree": 1,
}
_WRITES = _NAMES | {"os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1}


def command(world: World, arguments: list[str], *, before: Callable[[], object] = lambda: None) -> Outcome:
    """Run `fastmim ARGUMENTS`, and find fault with all that a hostile input should not bring about.

    What may be written is in the case's `out`, and in the attack's caches and temporary files.
    """
    arguments = [word.replace("\0", "\\0") for word in arguments]  # no system passes a zero byte to a program
    report = Path(f"{world.log()}.seen")
    bait = world.folder / "precious.txt"
    bait.write_text("precious")
    input_before = _all_but_out(world)

    def prepare() -> None:
        before()
        (world.folder / "out").mkdir(exist_ok=True)
        os.chdir(world.folder / "out")  # where some commands write by default
        guard(
            report, [world.folder / "out", *(Path(os.environ[name]) for name in ("XDG_CACHE_HOME", "TMPDIR", "HOME"))]
        )

    ended = forks.run(arguments, world.log(), seconds=SECONDS, before=prepare)
    faults = unclean(ended, allowed=[0, 1, 2])
    faults += [f"forbidden: {line}" for line in dict.fromkeys(report.read_text().splitlines())]
    if changed := [name for name, data in _all_but_out(world).items() if input_before.get(name) != data]:
        faults.append(f"wrote outside of out: {changed[:4]}")
    told = f"-> {ended.status} {ended.err.strip()[:300]!r}"
    return Outcome(faults=faults, did=f"fastmim {' '.join(map(repr, arguments))} {told}")


def _all_but_out(world: World) -> dict[str, bytes]:
    return {name: data for name, data in tree(world.folder).items() if not name.startswith("out")}


def guard(report: Path, allowed: list[Path]) -> None:
    """From now on, refuse this process programs, connections, pickles, and writing outside of `allowed`."""
    limit_memory(MEMORY)
    seen = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    roots = tuple(f"{os.path.realpath(path)}" for path in allowed)

    def inside(path: Any, *, follow: bool = True) -> bool:
        if isinstance(path, int):
            return True
        folder, name = os.path.split(os.fsdecode(path))
        if os.path.exists(folder) and not os.path.isdir(folder):  # noqa: PTH110, PTH112 - it will fail by itself
            return True
        real = os.path.realpath(os.fsdecode(path)) if follow else os.path.join(os.path.realpath(folder or "."), name)  # noqa: PTH118
        return real in ("/dev/null", "/dev/tty") or any(real == r or real.startswith(f"{r}{os.sep}") for r in roots)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        forbidden = event in _PROGRAMS or event in _PICKLE or (event in _NETWORK and not _local(args))
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            forbidden = bool(writes) and not inside(args[0])
        elif event in _WRITES:
            # A path relative to an open directory cannot be told; the folder is compared afterwards.
            relative = any(isinstance(a, int) and a >= 0 for a in args[_WRITES[event] :])
            forbidden = not relative and not all(inside(p, follow=event not in _NAMES) for p in args[: _WRITES[event]])
        if forbidden:
            os.write(seen, f"{event} {args!r}"[:300].replace("\n", " ").encode(errors="replace") + b"\n")
            raise PermissionError(f"the attack's guard forbids {event}")

    sys.dont_write_bytecode = True
    sys.addaudithook(hook)


def _local(args: tuple[Any, ...]) -> bool:
    """An address of this machine's own file system."""
    return len(args) > 1 and isinstance(args[1], str | bytes) and bool(args[1]) and args[1][:1] in ("/", b"/")


def limit_memory(further: int) -> None:
    """Let this process take so many further bytes of address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + further
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
