"""Windows and macOS, as far as Linux can tell: what they lack is taken away, and workers are spawned."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import SMALL, command_line

SOURCES = Path(__file__).parents[2] / "src/fastmim"

# Everything is imported twice: first with all of the system, so that other packages have what they take from it.
WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, subprocess, sys, tarfile, types, warnings
from pathlib import Path

def import_all():
    import fastmim
    return [importlib.import_module(found.name) for found in pkgutil.walk_packages(fastmim.__path__, "fastmim.")
            if found.name != "fastmim.__main__"]

import_all()
for name in [name for name in sys.modules if name.partition(".")[0] == "fastmim"]:
    del sys.modules[name]
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for module, names in (
    (signal, "SIGUSR1 SIGUSR2 SIGHUP SIGKILL SIGCHLD SIGXFSZ SIG_BLOCK sigtimedwait pthread_sigmask pthread_kill"),
    (os, "O_CLOEXEC O_NONBLOCK O_NOFOLLOW O_DIRECTORY pread fork forkpty getuid killpg sched_getaffinity mkfifo getloadavg"),
):
    for name in names.split():
        delattr(module, name)
os.O_BINARY, subprocess.CREATE_NEW_PROCESS_GROUP = 0, 512
psutil = sys.modules["psutil"] = types.ModuleType("psutil")
psutil.Process = lambda: types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(peak_wset=3 << 30))
sys.platform = "win32"
warnings.filterwarnings("error", category=EncodingWarning, module="fastmim")

assert len(import_all()) > 100
import fastmim
from fastmim.system import signals

assert [each.name for each in signals.SIGNALS] == ["SIGTERM", "SIGINT"]
settings, photos, folder = {settings}, Path({photos!r}), Path({folder!r})
with tarfile.open(folder / "photos.tar", "w") as tar:
    for path in sorted(photos.iterdir()):
        tar.add(path, path.name)
run = fastmim.pretrain(data=str(folder / "photos.tar"), out=folder / "run", **settings)
assert run.finished
packed = fastmim.pack(photos, folder / "packed", num_workers=0)
assert packed.finished
assert fastmim.embed(weights=run.out, data=str(folder / "packed"), out=folder / "features.npy", num_workers=0).finished
fastmim.export(run.out, to="state-dict", out=folder / "backbone.safetensors")
memory = [line["memory_gb"] for line in __import__("fastmim.system.run_directory", fromlist=["x"])
    .RunDirectory(run.out).read_metrics()]
assert memory == [3.0] * len(memory) and memory, memory
"""


def test_nothing_of_posix_alone_is_needed(photos: Path, tmp_path: Path) -> None:
    """Every module is imported; a run, a pack, embeddings and an export are made, and no lock is left."""
    settings = SMALL | {"steps": 4}
    script = WITHOUT_POSIX.replace("{settings}", repr(settings)).replace("{photos!r}", repr(str(photos)))
    script = script.replace("{folder!r}", repr(str(tmp_path)))
    command = [sys.executable, "-X", "warn_default_encoding", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    made = {"photos.tar", "run", "packed", "features.npy", "features.csv", "features.settings.json"}
    assert {path.name for path in tmp_path.iterdir()} == made | {"backbone.safetensors"}
    assert not list(tmp_path.rglob("*.lock"))


def test_every_text_file_names_its_encoding() -> None:
    """Windows would take that of the country."""
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            modes = [each.value for each in node.args if isinstance(each, ast.Constant)]
            on_path = node.func.attr in ("write_text", "read_text") and ast.unparse(node.func.value) != "files"
            opens = node.func.attr == "open" and ast.unparse(node.func.value) not in ("os", "Image", "gzip", "tarfile")
            if on_path or (opens and not any("b" in str(mode) for mode in modes)):
                assert any(each.arg == "encoding" for each in node.keywords), f"{path}:{node.lineno}"


# As on macOS: workers are spawned, and cannot wait for a signal and see its sender.
SPAWNED = """
import multiprocessing, signal, sys
import fastmim
from fastmim.cli import main
del signal.sigtimedwait

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn", force=True)
    main(sys.argv[1:])
"""
UNGUARDED = """
import multiprocessing
import fastmim
multiprocessing.set_start_method("spawn", force=True)
fastmim.pretrain(data={photos!r}, out={out!r}, **{settings})
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="this platform has no process groups")
def test_spawned_workers_that_an_interrupt_reaches_let_the_trainer_save(photos: Path, tmp_path: Path) -> None:
    """A terminal's Ctrl-C goes to trainer and workers alike."""
    script, out = tmp_path / "train.py", tmp_path / "run"
    script.write_text(SPAWNED, encoding="utf-8")
    words = command_line("pretrain", photos, out, SMALL | {"num_workers": 1, "steps": 100_000})[3:]
    with subprocess.Popen(
        [sys.executable, str(script), *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as trainer:
        while trainer.poll() is None and not (out / "checkpoints/step_000000008").exists():
            time.sleep(0.05)
        os.killpg(trainer.pid, signal.SIGINT)
        _, errors = trainer.communicate(timeout=60)
    assert trainer.returncode == 75
    assert errors.startswith("stopping after this step") and "to resume" in errors.splitlines()[-1]


def test_a_script_without_a_main_guard_is_told_so(photos: Path, tmp_path: Path) -> None:
    settings = SMALL | {"num_workers": 1, "steps": 2}
    script = tmp_path / "train.py"
    script.write_text(UNGUARDED.format(photos=str(photos), out=str(tmp_path / "run"), settings=settings), "utf-8")
    done = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'fastmim.errors.RequestError: the script has no `if __name__ == "__main__":`, and data workers, which import '
        "the script, would start it all again; put the calls of fastmim below such a line, or give num_workers=0"
    )
    assert "in use by another process" not in done.stdout
