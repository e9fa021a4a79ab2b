"""`fastmim predict` as users run it: both formats, the numbers of the validation, bad images, refusals."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

import fastmim
from fastmim import RequestError, RunError, cli, weights
from fastmim.data.labelled import open_labelled
from tuning import PLAIN, finetune

NAMES = {"blue": "żółć, [b]x", "green": '绿 "色"', "red": "=أحمر"}
LOCAL: dict[str, Any] = {"device": "cpu", "precision": "float32", "num_workers": 0, "batch_size": 10}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Path:
    """`labelled` with class names that are hard to quote and encode."""
    root = tmp_path_factory.mktemp("named")
    for part in ("train", "val"):
        for name, odd in NAMES.items():
            shutil.copytree(labelled / part / name, root / part / odd)
    return root


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Any:
    out = tmp_path_factory.mktemp("tuned") / "run"
    return finetune(out, pictures, steps=16, lr=0.1, eval_crop=0.75, eval_every="16 steps", **PLAIN)


def predict(tuned: Any, data: Path | None, out: Path, **settings: Any) -> Any:
    begin = {"weights": str(tuned.out), "out": out} | ({"data": str(data)} if data else {})
    return fastmim.predict(**LOCAL | begin | settings)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_validation_images_are_predicted_as_in_the_validation(tuned: Any, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "predictions.csv"
    result = predict(tuned, pictures / "val", out)
    assert (result.num_images, result.num_rows) == (24, 24)
    found, val = rows(out), open_labelled(str(pictures)).val
    assert [row["path"] for row in found] == [val.name(index) for index in range(24)]
    assert val.labels is not None
    right = [row["class"] == val.classes[label] for row, label in zip(found, val.labels, strict=True)]  # type: ignore[index]
    measured = json.loads((tuned.out / "evaluation.json").read_text())
    assert np.mean(right) == measured["val_top1"]
    ranks = ("", "_2", "_3")  # no fourth and fifth of three classes
    assert [*found[0]] == ["path", *(name + rank for rank in ranks for name in ("class", "probability"))]
    loss = 0.0
    for row, label in zip(found, val.labels, strict=True):
        shares = {row[f"class{rank}"]: float(row[f"probability{rank}"]) for rank in ranks}
        assert shares.keys() == set(NAMES.values()) and sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert [*shares.values()] == sorted(shares.values(), reverse=True)
        loss -= np.log(shares[val.classes[label]]) / 24  # type: ignore[index]
    assert loss == pytest.approx(measured["val_loss"], rel=1e-3)
    assert [path.name for path in out.parent.iterdir()] == ["predictions.csv"]


def test_parquet_and_csv_say_the_same(tuned: Any, pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number, picture in enumerate(sorted((pictures / "val" / NAMES["red"]).iterdir())):
        shutil.copy(picture, data / f"{number}{picture.suffix}")
    (data / "bad.png").write_bytes(b"<html>")
    for name in ("p.csv", "p.parquet"):
        assert predict(tuned, data, tmp_path / name, max_bad_share=0.2, batch_size=1).num_rows == 8
        [bad] = (tmp_path / "p.bad_images.txt").read_text().splitlines()
        assert "bad.png\t" in bad
    table = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    for row, same in zip(rows(tmp_path / "p.csv"), table, strict=True):
        assert row["path"] == same["path"] and row["class_2"] == same["class_2"]
        assert float(row["probability"]) == pytest.approx(same["probability"], abs=1e-6)


def test_the_command_and_too_many_unreadable_images(
    tuned: Any, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.csv"
    words = ["predict", "--weights", str(tuned.best_weights), "--data", str(pictures / "val"), "--out", str(out)]
    words += ["--device", "cpu", "--num-workers", "0"]
    for further, code in ((["--dry-run"], 0), ([], 0), ([], 2), (["--overwrite"], 0)):
        with pytest.raises(SystemExit, match=str(code)):
            cli.main([*words, *further])
        assert out.exists() != ("--dry-run" in further)
    said = capsys.readouterr()
    assert "images    32 px, the central 75 % of the shorter side" in said.out
    assert f"wrote {out}: 24 images (" in said.out and NAMES["green"] in said.out
    assert f"out is {out}, which exists; expected a new file: take another, or add --overwrite" in said.err

    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.jpg").write_bytes(b"<html>")
    with pytest.raises(RunError, match=r"3 of 3 images \(100.0%\) cannot be read"):
        predict(tuned, tmp_path / "bad", tmp_path / "q.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"bad", "p.csv", "q.bad_images.txt"}


def test_requests_that_are_refused(
    tuned: Any,
    pretrained: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    tensors, facts = load_file(tuned.weights), weights.read(tuned.weights)[1]
    weights.write(tmp_path / "odd.safetensors", tensors, facts | {"classes": ["a", "b"]})
    for settings, message in (
        ({"weights": None}, "weights are not given; expected a fine-tuning run: --weights runs/finetune"),
        ({"data": None}, "data is not given; expected images"),
        ({"weights": str(pretrained)}, "a backbone without a classifier; expected a fine-tuning run or its weights"),
        ({"weights": str(tmp_path / "odd.safetensors")}, "which names 2 classes and has 3; expected a name for each"),
        ({"out": tmp_path / "p.txt"}, r"p\.txt; expected a name that ends in \.csv or \.parquet"),
        ({"out": tmp_path / "folder.csv", "overwrite": True}, "which exists; expected a new file: take another$"),
        ({"out": tmp_path / "file" / "p.csv"}, "expected a file that can be written"),
    ):
        with pytest.raises(RequestError, match=message):
            predict(tuned, settings.pop("data", photos), settings.pop("out", tmp_path / "p.csv"), **settings)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    predict(tuned, photos, tmp_path / "p.csv", precision="bf16", dry_run=True)
    assert "note      bf16 is slow on this processor" in capsys.readouterr().out
    monkeypatch.setattr("fastmim.transfer.classify.predict.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pyarrow is not installed; run: pip install 'fastmim\[embed\]'"):
        predict(tuned, photos, tmp_path / "p.parquet")
    assert not list(tmp_path.glob("p.*"))
