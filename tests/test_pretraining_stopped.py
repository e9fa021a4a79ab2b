"""`fastmim pretrain` that is killed, signalled, or refused by its disk: the same command resumes to the bit."""

from __future__ import annotations

import errno
import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file

import fastmim
from conftest import SMALL, command_line, losses
from fastmim import RunError
from fastmim.data import loader
from processes import Forked, fork
from small_run import lines, pretrain
from tuning import equal, tensors

STAGED = SMALL | {"steps": 40, "stages": "32:0.5,48:0.5", "save_every": 4, "picture_every": "10 steps"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run that is never stopped, by the command as it is installed."""
    out = tmp_path_factory.mktemp("whole")
    assert subprocess.run(command_line("pretrain", photos, out, STAGED), capture_output=True).returncode == 0
    return out


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_9_and_the_same_command_give_the_same_weights(
    tmp_path: Path, photos: Path, whole: Path, workers: int
) -> None:
    """A real process, killed while it trains, more than once; bit-identical to one that was never stopped."""
    killed = tmp_path / "killed"
    for kills in range(2):
        with fork("pretrain", photos, killed, STAGED | {"num_workers": workers}) as process:
            wait_for(lambda kills=kills: len(lines(killed)) > 4 + 7 * kills, process)
            process.kill()
    assert not (killed / "weights.safetensors").exists()
    with fork("pretrain", photos, killed, STAGED) as process:
        said, _ = process.communicate()
    assert process.returncode == 0 and said.count("resuming at step") >= 1, said
    assert equal(tensors(whole), tensors(killed))
    assert losses(whole) == losses(killed)


def wait_for(condition: Any, process: Forked, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline, "the run did not come so far"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_75(tmp_path: Path, photos: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    settings = SMALL | {"steps": 2000, "save_every": 1000, "num_workers": 1}
    with fork("pretrain", photos, out, settings, errors=tmp_path / "errors") as process:
        wait_for(lambda: len(lines(out)) > 2, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors.startswith("stopping after this step; again to leave without saving\nstopped and saved at step ")
    assert "run the same command to resume" in errors and "Traceback" not in errors
    step = json.loads(lines(out)[-1])["step"]
    [saved] = (out / "checkpoints").iterdir()
    assert step <= int(saved.name.removeprefix("step_")) < 2000


def test_a_signal_saves_while_the_data_stalls(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network disk that has gone: an epoch of three steps comes, and then nothing."""
    answer = loader._Crops.__getitems__

    def stall(self: Any, batch: Any) -> Any:
        if batch[0] > 0:  # the epoch
            time.sleep(600)
        return answer(self, batch)

    monkeypatch.setattr(loader._Crops, "__getitems__", stall)
    forks = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", forks)
    out, settings = tmp_path / "run", SMALL | {"log_every": 1, "num_workers": 2}
    with fork("pretrain", photos, out, settings, errors=tmp_path / "errors") as process:
        wait_for(lambda: len(lines(out)) == 3, process)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors.splitlines() == [
        "stopping after this step; again to leave without saving",
        "stopped and saved at step 3 of 12; run the same command to resume",
    ]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_000000003"]


def _log_refuses(self: Any, step: int, metrics: dict[str, float]) -> None:
    if step == 6:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def _weights_refuse(tensors: dict[str, Any], path: Path, metadata: Any) -> None:
    if metadata:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    save_file(tensors, path)


def _refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system", "there")


@pytest.mark.parametrize(
    ("place", "refuse", "what", "kept"),
    [
        ("fastmim.training.logs.Logs.log", _log_refuses, r"\[Errno 122\] Disk quota exceeded", 4),
        ("fastmim.system.tensor_files.save_file", _weights_refuse, r"\[Errno 28\] No space left on device: '.*'", 12),
        ("PIL.Image.Image.save", _refuse, r"\[Errno 30\] Read-only file system: 'there'", 4),
        ("fastmim.data.bad_images.write_text", _refuse, r"\[Errno 30\] Read-only file system: 'there'", None),
    ],
)
def test_a_disk_that_refuses_is_one_line_that_says_what_is_intact(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, place: str, refuse: Any, what: str, kept: int | None
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "damaged.jpg").write_bytes(b"damaged")
    out, settings = tmp_path / "run", {"picture_every": "6 steps", "max_bad_share": 1.0}
    intact = f"the checkpoint of step {kept} in .* is intact" if kept else "there is no earlier checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(place, refuse)
        with pytest.raises(RunError) as caught:
            pretrain(out, data, **settings)
    line = f"the run in .*run failed: {what}; {intact}: free space or mend the disk, and run the same command to resume"
    assert re.fullmatch(line, str(caught.value))
    assert pretrain(out, data, **settings).finished


def test_odd_lines_of_metrics_are_left_out(tmp_path: Path, photos: Path) -> None:
    out = pretrain(tmp_path / "run", photos).out
    kept = lines(out)
    odd = b'\xff\xfe\x00\nnull\n7\n[1]\n{"step": "x"}\n{"loss": 1}\n' + b"[" * 100_000 + b"\n" + b"9" * 5000 + b"\n"
    (out / "metrics.jsonl").write_bytes(odd + "\n".join(kept).encode() + b'\n{"step": 1')
    assert fastmim.pretrain(out=out).finished
    assert lines(out) == kept


def test_what_kills_left_behind_is_removed(tmp_path: Path, photos: Path) -> None:
    """A kill while weights or lists were written, and one while the last save pruned."""
    out = pretrain(tmp_path / "run", photos).out
    for step in (2, 6):
        shutil.copytree(out / "checkpoints/step_000000012", out / f"checkpoints/.tmp_step_00000000{step}")
    before = {path.relative_to(out) for path in out.rglob("*") if ".tmp" not in str(path)}
    whole = pretrain(tmp_path / "third", photos, steps=12, keep_every=4).out
    shutil.copytree(whole / "checkpoints/step_000000004", out / "checkpoints/step_000000004")
    for name in ("weights.safetensors", "bad_images.txt"):
        (out / f".{name}.123.tmp").mkdir()
        (out / f".{name}.123.tmp/.tmpAbCdEf").write_text("half")
    (out / ".config.yaml.123.tmp").write_text("half")
    (out / ".notes.tmp").write_text("mine")
    assert pretrain(out, photos).finished
    assert {path.relative_to(out) for path in out.rglob("*")} == before | {Path(".notes.tmp")}
