"""Segmentation as a run: it learns, its scores are right, it resumes to the bit, its weights are of use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import fastmim
from fastmim import cli, weights
from fastmim.transfer.segment.file import FORMAT
from fastmim.transfer.segment.predict import Predicted
from processes import Forked, wait_for
from scenes import CLASSES, NETWORK, SEGMENT, draw_scenes, segment
from tuning import equal, lines, tensors


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    return segment(tmp_path_factory.mktemp("runs") / "run", scenes).out


def test_eight_images_are_learned_by_heart(tmp_path: Path) -> None:
    """Scored on the training images, which the network sees in their own size and colours."""
    data = draw_scenes(tmp_path / "large", sides=((72, 56), (56, 64)))
    parts = {"labels": data / "annotations/training", "val_labels": data / "annotations/training"}
    own = {"val_data": data / "images/training", "classes": data / "classes.txt", "ignore_index": 0}
    plain: dict[str, Any] = {"jitter": False, "scale": (1.0, 1.0), "drop_path": 0.0, "test": "whole"}
    often = {"eval_every": "100%", "save_every": 1000, "log_every": 1000}
    size = {"channels": 32, "img_size": 56, "batch_size": 8, "steps": 80}
    out = tmp_path / "run"
    found = segment(out, data / "images/training", **parts, **own, **plain, **often, **size)
    assert found.miou is not None and found.miou > 0.8
    stored = json.loads((out / "evaluation.json").read_text())
    assert stored["images"] == 8 and stored["val_miou"] == found.miou and list(stored["per_class"]) == CLASSES


def test_a_run_leaves_weights_scores_and_pictures(run: Path) -> None:
    names = {"config.yaml", "checkpoints", "evaluation.json", "metrics.jsonl", "samples"}
    assert {path.name for path in run.iterdir()} >= names | {"weights.safetensors", "weights_best.safetensors"}
    assert [path.name for path in (run / "samples").iterdir()] == ["prediction_000000004_000000.png"]
    [logged] = [line for line in lines(run) if "val_miou" in line]
    stored = json.loads((run / "evaluation.json").read_text())
    ious = [c["iou"] for c in stored["per_class"].values() if c["iou"] is not None]
    assert logged["step"] == stored["step"] == 4
    assert logged["val_miou"] == stored["val_miou"] == pytest.approx(np.mean(ious))


def test_kill_9_and_the_same_command_give_the_same_weights(tmp_path: Path, scenes: Path) -> None:
    """With everything that is random: crops, flips, jitter, drop path, dropout."""
    settings = SEGMENT | NETWORK | {"data": str(scenes), "steps": 16, "eval_every": "5 steps"}
    whole = fastmim.segment(**(settings | {"out": tmp_path / "whole"})).out
    killed, config = tmp_path / "killed", tmp_path / "run.yaml"
    shapes = {name: list(shape) for name, shape in NETWORK["backbone_args"].items()}
    config.write_text(yaml.safe_dump(settings | {"out": str(killed), "num_workers": 1, "backbone_args": shapes}))
    with Forked(lambda: cli.main(["segment", "--config", str(config)]), tmp_path / "killed.log") as process:
        wait_for(killed / "metrics.jsonl", 4)
        assert process.poll() is None
        process.kill()
    assert not (killed / "weights.safetensors").exists()
    assert fastmim.segment(out=killed).finished  # the stored settings are enough
    assert equal(tensors(killed), tensors(whole))
    assert weights.read(killed)[0].keys() == weights.read(whole)[0].keys()
    assert [line for line in lines(killed) if "val_miou" in line] == [
        line for line in lines(whole) if "val_miou" in line
    ]


def test_predictions_are_those_of_the_validation(tmp_path: Path, run: Path, scenes: Path) -> None:
    """Scoring the written label images gives the numbers of evaluation.json."""
    out = tmp_path / "predictions"
    images = scenes / "images/validation"
    how = {"device": "cpu", "precision": "float32", "num_workers": 0}
    found = fastmim.segment(predict_images=str(images), weights=str(run), out=out, **how)
    assert found == Predicted(out, 4)
    confusion = np.zeros((5, 5))
    for path in sorted(images.iterdir()):
        labels = np.array(Image.open(scenes / "annotations/validation" / path.name))
        with Image.open(out / "labels" / path.name) as predicted, Image.open(out / "pictures" / path.name) as picture:
            assert (predicted.mode, picture.mode) == ("P", "RGB") and predicted.size == labels.shape[::-1]
            np.add.at(confusion, (labels, np.array(predicted)), 1)
    assert confusion[:, 0].sum() == 0  # numbered as in training: the classes begin at 1
    stored = json.loads((run / "evaluation.json").read_text())
    assert stored["val_pixel_accuracy"] == pytest.approx(np.trace(confusion[1:, 1:]) / confusion[1:].sum())


def test_a_folder_of_predictions_that_exists_is_refused(
    tmp_path: Path, run: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["segment", "--predict", str(scenes / "images/validation"), "--weights", str(run), "--device", "cpu"]
    with pytest.raises(SystemExit) as exit_:
        cli.main([*words, "--out", str(tmp_path)])
    assert exit_.value.code == 2
    assert "which exists; expected a new folder for the predictions" in capsys.readouterr().err
    for more in (["--overwrite", "--dry-run"], ["--overwrite", "--num-workers", "0"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main([*words, "--out", str(tmp_path), *more])
        assert exit_.value.code == 0
        assert (tmp_path / "labels").exists() == ("--dry-run" not in more)


def test_unreadable_images_are_left_out_of_predictions(tmp_path: Path, run: Path, scenes: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        (images / f"{number}.png").write_bytes((scenes / f"images/validation/{number}.png").read_bytes())
    (images / "broken.png").write_bytes(b"no image")
    (images / "0.jpg").symlink_to(images / "0.png")  # would have the name of another prediction
    settings = {"weights": str(run), "device": "cpu", "num_workers": 0}
    with pytest.raises(fastmim.RunError, match=r"1 of 4 images \(25.0%\) cannot be read"):
        fastmim.segment(predict_images=str(images), out=tmp_path / "strict", **settings)
    found = fastmim.segment(predict_images=str(images), out=tmp_path / "out", max_bad_share=0.5, **settings)
    assert isinstance(found, Predicted) and found.num_images == 3
    assert {path.name for path in (tmp_path / "out/labels").iterdir()} == {"0.png", "1.png", "00000001.png"}
    assert "broken.png" in (tmp_path / "out/bad_images.txt").read_text()


def test_the_weights_file_holds_the_backbone_as_timm_loads_it(run: Path, tmp_path: Path, scenes: Path) -> None:
    opened = FORMAT.load(str(run))
    backbone = weights.load_backbone(run)
    own = opened.network.trunk.model.state_dict()
    assert equal(backbone.state_dict(), own)
    again = segment(tmp_path / "again", scenes, weights=str(run), steps=1, head="linear")
    assert equal(FORMAT.load(str(again.out)).network.trunk.model.state_dict(), own)  # frozen


def test_a_linear_head_trains_nothing_else(tmp_path: Path, pretrained: Path, scenes: Path) -> None:
    found = segment(tmp_path / "run", scenes, weights=str(pretrained), head="linear", batch_size=1, test="whole")
    trained = FORMAT.load(str(found.out))
    before = weights.load_backbone(pretrained, img_size=32).state_dict()
    assert equal(trained.network.trunk.model.state_dict(), before)
    assert all(layer.weight.abs().sum() > 0 for layer in trained.network.head.layers)
    assert len(trained.network.head.layers) == 4  # a plain ViT's quarters


def test_a_file_whose_description_was_changed_is_refused(tmp_path: Path, run: Path, pretrained: Path) -> None:
    with pytest.raises(fastmim.RequestError, match="which holds no segmenter; expected a run of `fastmim segment`"):
        FORMAT.load(str(pretrained))
    stored, facts = weights.read(run)
    changes = [
        ({"channels": 10**9}, "a number is out of range"),
        ({"channels": 24}, "size mismatch|Error"),
        ({"head": "none"}, "its head or test is unknown"),
        ({"classes": [1, 2]}, "its classes are no names"),
        ({"more": 1}, "its metadata lacks something"),
        ({"aux_weight": "much"}, "a number is out of range"),
    ]
    for change, message in changes:
        path = tmp_path / "changed.safetensors"
        weights.write(
            path, stored, {k: v for k, v in facts.items() if k != "format"} | {"segmenter": facts["segmenter"] | change}
        )
        with pytest.raises(fastmim.RequestError, match=f"does not fit its description .*({message})"):
            FORMAT.load(str(path))


def test_the_plan_is_printed_without_training(tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = segment(tmp_path / "run", scenes, dry_run=True, recipe="swin-b")
    printed = capsys.readouterr().out
    assert not found.finished and not (tmp_path / "run").exists()
    for expected in (
        "8 images, 4 classes (ground, red, green, blue); 2 steps an epoch",
        "4 images of 32 px, whole",
        "network   convnext_atto with a head upernet: 0.2 M parameters, 0.2 M trained; drop path 0.3",
        "peak learning rate 1.56e-03",
    ):
        assert expected in printed
    assert torch.initial_seed() == 0
