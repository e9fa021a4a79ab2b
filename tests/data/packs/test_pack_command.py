"""The command `fastmim pack`, and training on what it wrote."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

import fastmim
from conftest import SMALL, losses
from fastmim import cli
from fastmim.data.packs import packing
from fastmim.data.packs.writer import PackWriter
from fastmim.data.sources import open_source
from packs import pack
from pictures import encode, photograph
from processes import Forked, wait_until


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(words))
    return int(exit_.value.code or 0)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "packed")
    assert run("pack", str(folder), out, "--codec", "raw", "--short-side", "48", "--num-workers", "0") == 0
    assert f"wrote {out}: 100 images, 0.9 MB, 9.2 KB an image" in capsys.readouterr().out.replace("\n", " ")
    assert run("pack", "--verify", out) == 0 and run("pack", out, "--verify") == 0
    assert "all 100 images match their checksums" in capsys.readouterr().out
    (tmp_path / "packed/names.bin").write_bytes(bytes((tmp_path / "packed/names.bin").stat().st_size))
    assert run("pack", "--verify", out) == 1
    assert "is damaged in names.bin" in capsys.readouterr().err
    assert run("pack", str(folder)) == 2 and run("pack", str(folder), out, "--verify") == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].endswith("out is not given; expected two arguments, images and the directory to make")
    assert errors[1].endswith("expected one directory with --verify")


def test_a_dry_run_and_a_config_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pack.yaml").write_text(f"data: {folder}\nout: packed\ncodec: raw\nshort_side: 32\n")
    assert run("pack", "--config", "pack.yaml", "--short-side", "48", "--num-workers", "0", "--dry-run") == 0
    said = capsys.readouterr().out
    assert ": 100 images\n" in said and "raw, shorter side 48 px at most" in said and "out       packed" in said
    assert [path.name for path in tmp_path.iterdir()] == ["pack.yaml"]
    assert run("pack", "--config", "pack.yaml", "--num-workers", "0") == 0
    assert open_source("packed").read(0).shape == (32, 43, 3)  # type: ignore[union-attr]
    with monkeypatch.context() as patch:
        patch.setattr(PackWriter, "append", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert run("pack", "--config", "pack.yaml", "--num-workers", "0", "--overwrite") == 75
    assert "run the same command without --overwrite to resume" in capsys.readouterr().err


def test_the_command_resumes_after_a_signal(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encode(photograph(), "PNG"))
    (tmp_path / "list.txt").write_text("photo.png\n" * 400)
    words = ["pack", "list.txt", "packed", "--codec", "raw", "--num-workers", "2"]

    def command() -> None:
        os.setsid()
        os.chdir(tmp_path)
        cli.main(words)

    images = tmp_path / "packed.partial/images.bin"
    with Forked(command, tmp_path / "log", errors=tmp_path / "errors") as process:
        wait_until(lambda: images.exists() and images.stat().st_size, seconds=60)
        os.killpg(process.pid, signal.SIGTERM)  # as torchrun and SLURM do: the workers get it too
        _, errors = process.communicate(60)
    assert process.returncode == 75 and "run the same command to resume" in errors
    assert not (tmp_path / "packed").exists()
    with Forked(command, tmp_path / "log") as process:
        assert process.wait(60) == 0
    assert packing.verify(tmp_path / "packed") == 400


def curve(folder: Path, out: Path) -> list[float]:
    fastmim.pretrain(**(SMALL | {"data": str(folder), "out": out, "steps": 4, "log_every": 1}))
    return losses(out)


def test_training_on_a_raw_pack_at_native_size_is_identical(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed", short_side=60)
    assert curve(tmp_path / "packed", tmp_path / "b") == curve(folder, tmp_path / "a")


def test_training_on_a_jpeg_pack_is_close(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed", short_side=60, codec="jpeg")
    a, b = curve(folder, tmp_path / "a"), curve(tmp_path / "packed", tmp_path / "b")
    assert torch.tensor(b).allclose(torch.tensor(a), rtol=0.02)
