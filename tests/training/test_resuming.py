"""Runs go on where their images have moved, from any folder, and for more steps than they were begun with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

import fastmim
import tuning
from conftest import SMALL
from fastmim import RequestError
from fastmim.data.sources import fingerprint, open_source
from fastmim.data.sources.source import ByPosition
from fastmim.training.schedule import learning_rate


def pretrain(out: Path, data: Path | str, **settings: Any) -> Any:
    return fastmim.pretrain(**(SMALL | {"data": str(data), "out": out} | settings))


def interrupt(run: Path) -> None:
    """Leave what a kill at step 8 of 12 leaves."""
    shutil.rmtree(run / "checkpoints/step_000000012")
    (run / "weights.safetensors").unlink()


def test_images_may_move(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends as if they had not, and says where they were; it goes on from any folder."""
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    out = pretrain(Path("run"), "photos").out.absolute()
    expected = (out / "weights.safetensors").read_bytes()
    assert yaml.safe_load((out / "config.yaml").read_text())["data"] == str(tmp_path / "photos")

    interrupt(out)
    monkeypatch.chdir("/")
    assert fastmim.pretrain(out=out).finished
    assert (out / "weights.safetensors").read_bytes() == expected
    assert "moved" not in capsys.readouterr().out

    interrupt(out)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos").rename(tmp_path / "elsewhere/pictures")
    with pytest.raises(RequestError, match="photos: no such file or directory"):
        fastmim.pretrain(out=out)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pretrain(out, "pictures").finished
    assert f"the images were in {tmp_path / 'photos'}; those of now have the same names" in capsys.readouterr().out
    stored = load_file(out / "weights.safetensors")  # whose metadata names the data
    assert all(stored[name].equal(tensor) for name, tensor in load_file_of(expected, tmp_path).items())
    assert yaml.safe_load((out / "config.yaml").read_text())["data"] == str(tmp_path / "elsewhere/pictures")


def load_file_of(content: bytes, folder: Path) -> dict[str, Any]:
    (folder / "expected.safetensors").write_bytes(content)
    return load_file(folder / "expected.safetensors")


def test_validation_images_may_move_and_other_ones_are_refused(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled / "val", tmp_path / "val")
    run = tuning.finetune(tmp_path / "run", labelled / "train", val_data=str(tmp_path / "val"))
    (tmp_path / "val").rename(tmp_path / "moved")
    assert tuning.finetune(run.out, labelled / "train", val_data=str(tmp_path / "moved")).finished
    (tmp_path / "moved/red/0.png").rename(tmp_path / "moved/red/other.png")
    with pytest.raises(
        RequestError, match="val_data is .*moved, whose images have other names than those that the run"
    ):
        tuning.finetune(run.out, labelled / "train", val_data=str(tmp_path / "moved"))


def test_a_run_that_has_ended_can_be_trained_longer(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = pretrain(tmp_path / "run", photos, warmup="2 steps").out
    before = (out / "weights.safetensors").read_bytes()
    assert pretrain(out, photos, warmup="2 steps", steps=20).step == 20
    rate = learning_rate(12, peak=1e-2 * 8 / 256, warmup_steps=2, total_steps=20)
    line = f"longer    20 steps instead of 12: from step 12 on, the learning rate follows the schedule of 20 (now {rate:.2e})"
    assert line in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 21, 2))
    for line in lines:  # the rate of a line's last step, counted from 0
        total = 12 if line["step"] <= 12 else 20
        expected = learning_rate(line["step"] - 1, peak=1e-2 * 8 / 256, warmup_steps=2, total_steps=total)
        assert line["lr"] == pytest.approx(expected)
    assert (out / "weights.safetensors").read_bytes() != before
    assert yaml.safe_load((out / "config.yaml").read_text())["steps"] == 20
    assert fastmim.pretrain(out=out, epochs=7).step == 21  # 24 images are 3 steps of 8

    message = f"a run of 21 steps, not 12; expected no fewer: take another --out, from its weights with --init {out}"
    with pytest.raises(RequestError, match=message):
        fastmim.pretrain(out=out, steps=12)


def test_a_run_of_rising_sizes_keeps_its_length(tmp_path: Path, photos: Path) -> None:
    out = pretrain(tmp_path / "run", photos, stages="16:0.5,32:0.5", steps=4).out
    with pytest.raises(RequestError, match="a run of 4 steps, not 8; expected as many, since its image sizes rise"):
        pretrain(out, photos, stages="16:0.5,32:0.5", steps=8)


class Named(ByPosition):
    """Images that are nothing but names."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(origin="names")
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return self.names[index]


def test_a_fingerprint_is_of_names_within_their_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]
    first = fingerprint(Named([f"/data/{name}" for name in names]))
    assert first == fingerprint(Named([f"D:\\photos\\{name}".replace("/", "\\") for name in names]))
    others = [
        ["cat/1.jpg", "dog/1.jpg", "cat/2.jpg"],
        ["cat/1.jpg", "cat/2.jpg", "dog/2.jpg"],
        ["cat/1.jpg", "cat/2.jpg"],
    ]
    assert len({fingerprint(Named(each)) for each in [names, *others]}) == 4
    assert fingerprint(Named(names)) == first
    assert fingerprint(open_source("samples")) == fingerprint(open_source("samples"))
    assert fingerprint(Named(["torchvision://A#0"])) != fingerprint(Named(["torchvision://B#0"]))

    monkeypatch.setattr("fastmim.data.sources.identity._MOST", 10)
    many = [f"{number}.jpg" for number in range(1000)]
    assert fingerprint(Named(many)) != fingerprint(Named(["new.jpg", *many[:-1]]))
