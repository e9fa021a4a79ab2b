"""Checkpoints are written behind the training: one at a time, of the right step, and no failure goes unnoticed."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fastmim
from conftest import SMALL
from fastmim.errors import RunError
from fastmim.system import devices
from fastmim.training import checkpoint
from processes import together

WRITE = checkpoint.write


class Slow:
    """`checkpoint.write`, which begins only when it is let go, or after some time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.let_go = seconds, threading.Event()
        self.running, self.most, self.waited = 0, 0, False

    def __call__(self, *args: Any, **options: Any) -> Path:
        self.running += 1
        self.most = max(self.most, self.running)
        self.waited |= self.let_go.wait(self.seconds)
        path = WRITE(*args, **options)
        self.running -= 1
        return path


def pretrain(out: Path, photos: Path, **settings: Any) -> Any:
    return fastmim.pretrain(**SMALL | {"save_every": 5} | settings, data=str(photos), out=out)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.name} {name}": value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()
    }


def same(one: Path, other: Path) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours) and bool(ours)


def test_steps_are_made_while_a_checkpoint_is_written(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is let go by step 8; what it then writes is the state of step 5."""
    pretrain(tmp_path / "one", photos)
    slow = Slow(60)
    monkeypatch.setattr(checkpoint, "write", slow)
    advance = fastmim.training.logs.Logs.advance

    def let_go(logs: Any, step: int) -> None:
        if step == 8:
            assert not (tmp_path / "two/checkpoints").exists()
            slow.let_go.set()
        advance(logs, step)

    monkeypatch.setattr("fastmim.training.logs.Logs.advance", let_go)
    pretrain(tmp_path / "two", photos, keep_every=5)
    assert slow.waited and slow.most == 1
    assert same(tmp_path / "one", tmp_path / "two")
    monkeypatch.undo()
    stops = [tmp_path / f"{name}/checkpoints/step_000000005" for name in ("two", "three")]
    pretrain(tmp_path / "three", photos, keep_every=5, save_every=1)
    assert same(*stops)


def test_a_save_waits_for_the_one_before_and_the_end_for_the_last(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(0.1)
    monkeypatch.setattr(checkpoint, "write", slow)
    out = pretrain(tmp_path / "run", photos, save_every=3).out
    assert slow.most == 1 and slow.running == 0
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step_000000009", "step_000000012"]


def test_a_failed_save_ends_the_run_at_the_next_step(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def fill(root: Path, state: checkpoint.State, **options: Any) -> Path:
        raise RunError(f"could not save step {state.step}: the disk is full")

    advance = fastmim.training.logs.Logs.advance

    def record(logs: Any, step: int) -> None:
        steps.append(step)
        time.sleep(0.05)  # for the thread
        advance(logs, step)

    monkeypatch.setattr(checkpoint, "write", fill)
    monkeypatch.setattr("fastmim.training.logs.Logs.advance", record)
    with pytest.raises(RunError, match="could not save step 5: the disk is full"):
        pretrain(tmp_path / "run", photos)
    assert steps[-1] in (6, 7)


def test_a_failed_save_ends_all_processes_with_one_line(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastmim.training.checkpoint.files.crc32", refuse)
    statuses, said = together("pretrain", photos, tmp_path / "run", SMALL, SMALL)
    assert statuses == [1, 1]
    assert said.count("No space left on device; there is no earlier checkpoint: free space or mend the disk") == 1
    assert said.count("fastmim:") == 1


@pytest.fixture(params=["little memory", "no allocation"])
def short_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    if request.param == "little memory":
        monkeypatch.setattr(devices, "free_memory", lambda: 1000)
    else:
        monkeypatch.setattr("fastmim.training.saving.torch", SimpleNamespace(empty=refuse))
    yield
    monkeypatch.undo()


def test_training_waits_where_memory_has_no_room_for_a_copy(
    tmp_path: Path,
    photos: Path,
    short_memory: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow(0)
    monkeypatch.setattr(checkpoint, "write", lambda *args, **options: slow(*args, **options))
    one = pretrain(tmp_path / "one", photos).out
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("note no room in host memory for a copy of the state (0.00") == 1
    assert said.count("GiB): training waits while a checkpoint is written") == 1
    monkeypatch.undo()
    two = pretrain(tmp_path / "two", photos).out
    assert same(*(out / "checkpoints/step_000000010" for out in (one, two)))


@pytest.mark.skipif(devices.free_memory() is None, reason="only Linux tells")
def test_free_memory_is_less_than_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < devices.free_memory() < total  # type: ignore[operator]
