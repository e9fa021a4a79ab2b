"""One writer per directory at a time: the second one waits, and is refused if the first one does not end."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastmim
from conftest import SMALL
from fastmim.errors import RequestError
from fastmim.system import locking

NETWORK = {"backbone": "vit_tiny_patch16_224", "backbone_args": {"patch_size": 8, "embed_dim": 24, "depth": 1}}


def pretrain(photos: Path, out: Path) -> Any:
    return fastmim.pretrain(**SMALL, data=str(photos), out=out)


def finetune(photos: Path, out: Path) -> Any:
    for number, path in enumerate(sorted(photos.iterdir())):
        label = out.parent / "labelled" / "ab"[number % 2]
        label.mkdir(parents=True, exist_ok=True)
        if not (label / path.name).exists():
            (label / path.name).symlink_to(path)
    given = {"weights": "none", "steps": 2, "batch_size": 4, "img_size": 32, "device": "cpu", "num_workers": 0}
    return fastmim.finetune(**given, **NETWORK, data=str(out.parent / "labelled"), val_share=0.3, out=out)


def pack(photos: Path, out: Path) -> Any:
    return fastmim.pack(photos, out, num_workers=0)


def embed(photos: Path, out: Path) -> Any:
    given = {"weights": "none", "img_size": 32, "device": "cpu", "num_workers": 0}
    return fastmim.embed(**given, **NETWORK, data=str(photos), out=out.with_suffix(".npy"))


@pytest.mark.parametrize(
    ("command", "folder"),
    [(pretrain, "out"), (finetune, "out"), (pack, "out.partial"), (embed, "out.npy.partial")],
)
def test_two_writers(
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Callable[[Path, Path], Any],
    folder: str,
) -> None:
    monkeypatch.setattr(locking, "WAIT_SECONDS", 0.0)
    with locking.hold(tmp_path / folder, print):
        with pytest.raises(
            RequestError, match=r"out is .*out.*, where another process( \(\d+\))? is at work; expected a free path"
        ):
            command(photos, tmp_path / "out")
        who = f" ({os.getpid()})" if sys.platform == "linux" else ""  # which Linux alone tells
        assert f"in use by another process{who}; waiting up to 0 s" in capsys.readouterr().out
        assert [path.name for path in (tmp_path / folder).iterdir()] == [".lock"]
    assert command(photos, tmp_path / "out").finished
    assert not list(tmp_path.rglob(".lock"))


def test_the_second_one_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held, order = threading.Event(), []

    def first() -> None:
        with locking.hold(tmp_path / "run", print):
            held.set()
            time.sleep(0.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with locking.hold(tmp_path / "run", print):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert (
        len(re.findall(r"in use by another process.*; waiting up to 60 s for it to end", capsys.readouterr().out)) == 1
    )


def test_a_directory_is_removed_only_if_nothing_was_written(tmp_path: Path) -> None:
    with locking.hold(tmp_path / "a/b", print):
        pass
    assert not (tmp_path / "a").exists()
    with locking.hold(tmp_path / "a/b", print):
        (tmp_path / "a/b/file").write_text("")
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["file"]
    with locking.hold(tmp_path / "a/b", print):
        (tmp_path / "a/b/folder").mkdir()
        (tmp_path / "a/b/folder/file").write_text("")
        locking.clear(tmp_path / "a/b")
        assert [path.name for path in (tmp_path / "a/b").iterdir()] == [".lock"]
    assert not list((tmp_path / "a/b").iterdir())


def test_a_lock_file_removed_while_waiting_is_not_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, calls = fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()  # by the previous holder
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locking.hold(tmp_path, print):
        assert len(calls) == 2 and (tmp_path / ".lock").exists()


def test_a_directory_removed_while_waiting_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The previous holder removes its empty directory between our making it and our opening the lock."""
    open_, calls = os.open, []

    def racing(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path).endswith(locking.FILE):
            calls.append(path)
            if len(calls) < 4:
                Path(path).parent.rmdir()
        return open_(path, *arguments, **more)

    monkeypatch.setattr(os, "open", racing)
    with locking.hold(tmp_path / "run", print):
        assert len(calls) == 4 and (tmp_path / "run/.lock").exists()
    monkeypatch.setattr(locking, "_MAX_LOST", 2)
    calls.clear()
    refused = pytest.raises(RequestError, match="No such file or directory; expected a path that can be written")
    with refused, locking.hold(tmp_path / "run", print):  # it vanishes too often to be a race
        pass


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(RequestError, match="File name too long; expected a path that can be written")
    with refused, locking.hold(tmp_path / ("x" * 300), print):
        pass


def test_a_lock_is_never_opened_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.tex"
    precious.write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(precious)
    refused = pytest.raises(RequestError, match=".lock in it is a link; remove it; expected a path that can be written")
    with refused, locking.hold(tmp_path / "run", print):
        pass
    (tmp_path / "run/.lock").unlink()
    os.link(precious, tmp_path / "run/.lock")
    with locking.hold(tmp_path / "run", print):
        assert precious.read_text() == "years of work"
    assert precious.read_text() == "years of work"


def test_staging_removes_what_a_kill_left(tmp_path: Path) -> None:
    left = tmp_path / ".out.safetensors.tmp/new"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    with locking.staging(tmp_path / "out.safetensors", print) as folder:
        assert not list(folder.iterdir())
        (folder / "whole").write_text("whole")
        (folder / "whole").replace(tmp_path / "out.safetensors")
        (folder / "rest").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    with pytest.raises(ZeroDivisionError), locking.staging(tmp_path / "a/out", print):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(number, "says no")

    monkeypatch.setattr(fcntl, "flock", flock)
    number = errno.ENOLCK
    with locking.hold(tmp_path / "run", print):
        assert "a file system without locks: make sure that nothing else writes to it" in capsys.readouterr().out
    number = errno.EIO
    refused = pytest.raises(RequestError, match="says no; expected a path that can be written")
    with refused, locking.hold(tmp_path / "run", print):
        pass
