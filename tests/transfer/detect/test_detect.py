"""Detection as a run: it learns, its scores are right, it resumes to the bit, its weights are of use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import fastmim
import shapes
from fastmim import cli, weights
from fastmim.errors import RequestError
from fastmim.published import DETECT_RECIPES
from fastmim.training import opening
from fastmim.transfer.detect.detect import Result
from fastmim.transfer.detect.file import FORMAT
from fastmim.transfer.detect.predict import Predicted
from fastmim.transfer.detect.scores import NAMES, score
from fastmim.transfer.detect.settings import DetectConfig
from processes import Forked, wait_for
from tuning import equal, lines, tensors

NETWORK: dict[str, Any] = {
    "backbone": "convnext_atto",
    "backbone_args": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
}
SMALL: dict[str, Any] = {
    "img_size": 64,
    "channels": 8,
    "num_regions": 16,
    "batch_size": 2,
    "steps": 4,
    "lr": 0.1,
    "scale": (0.5, 1.5),
    "eval_every": "4 steps",
    "save_every": 2,
    "log_every": 2,
    "num_pictures": 1,
    "num_workers": 0,
    "device": "cpu",
    "precision": "float32",
    "trackers": "none",
    "report": "never",
}


def detect(out: Path, data: Path, **settings: Any) -> Result:
    begin = {} if "weights" in settings else NETWORK
    result = fastmim.detect(**(SMALL | begin | {"data": str(data), "out": out} | settings))
    assert isinstance(result, Result)
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.draw_coco(tmp_path_factory.mktemp("data") / "coco", counts=(8, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return detect(tmp_path_factory.mktemp("runs") / "run", data).out


def test_eight_images_are_learned_by_heart(tmp_path: Path, data: Path) -> None:
    """Scored on the training images."""
    own = {"val_data": shapes.file_of(data), "val_images": data / "train2017"}
    plain = {"scale": (1.0, 1.0), "flip": False, "drop_path": 0.0, "clip": 5.0, "warmup": "10 steps"}
    often = {"eval_every": "100%", "save_every": 1000, "log_every": 1000, "num_pictures": 0}
    wide = {"backbone_args": {"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64)}, "channels": 32, "num_regions": 32}
    how = {"batch_size": 8, "steps": 60, "lr": 3e-3 * 32}
    found = detect(tmp_path / "run", data, **own, **plain, **often, **wide, **how)
    assert found.box_ap50 is not None and found.box_ap50 > 0.8
    stored = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert stored["images"] == 8 and stored["mask"]["AP50"] > 0.8 and stored["val_box_ap50"] == found.box_ap50


def test_a_run_leaves_weights_scores_and_pictures(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"weights.safetensors", "weights_best.safetensors", "evaluation.json", "samples"} <= names
    [picture] = (run / "samples").iterdir()
    assert picture.name == "detection_000000004_000000.png"
    with Image.open(picture) as image:
        assert image.width >= 2 * 320
    [logged] = [line for line in lines(run) if "val_box_ap" in line]
    stored = json.loads((run / "evaluation.json").read_text())
    assert logged["step"] == stored["step"] == 4 and logged["val_mask_ap"] == stored["val_mask_ap"]
    assert tuple(stored["box"]) == tuple(stored["mask"]) == NAMES
    assert set(stored["per_class"]) == set(shapes.NUMBERS)


def test_kill_9_and_the_same_command_give_the_same_weights(tmp_path: Path, data: Path) -> None:
    """With everything that is random: sizes, places, flips, drop path, and the regions that are trained."""
    settings = SMALL | NETWORK | {"data": str(data), "steps": 12, "eval_every": "6 steps"}
    whole = fastmim.detect(**(settings | {"out": tmp_path / "whole"})).out
    killed, config = tmp_path / "killed", tmp_path / "run.yaml"
    plain = {"scale": [0.5, 1.5], "backbone_args": {n: list(v) for n, v in NETWORK["backbone_args"].items()}}
    config.write_text(yaml.safe_dump(settings | plain | {"out": str(killed), "num_workers": 1}))
    with Forked(lambda: cli.main(["detect", "--config", str(config)]), tmp_path / "killed.log") as process:
        wait_for(killed / "metrics.jsonl", 2)
        assert process.poll() is None
        process.kill()
    assert not (killed / "weights.safetensors").exists()
    assert fastmim.detect(out=killed).finished  # the stored settings are enough
    assert equal(tensors(killed), tensors(whole))
    assert [line for line in lines(killed) if "val_box_ap" in line] == [
        line for line in lines(whole) if "val_box_ap" in line
    ]


def test_predictions_are_those_of_the_validation(tmp_path: Path, run: Path, data: Path) -> None:
    """Scoring the written file gives the numbers of evaluation.json."""
    out = tmp_path / "predictions"
    how = {"device": "cpu", "precision": "float32", "num_workers": 0}
    found = fastmim.detect(predict_images=str(data / "val2017"), weights=str(run), out=out, **how)
    content = json.loads((out / "predictions.json").read_text())
    assert found == Predicted(out, 2, len(content["annotations"]))
    assert content["categories"] == shapes.categories()
    truth = shapes.read(data, "val")
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    own = {image["id"]: ids[Path(image["file_name"]).name] for image in content["images"]}
    results = [
        {name: a[name] for name in ("category_id", "bbox", "score", "segmentation")} | {"image_id": own[a["image_id"]]}
        for a in content["annotations"]
    ]
    stored = json.loads((run / "evaluation.json").read_text())
    assert score(truth, results, masks=True).overall["box"] == pytest.approx(stored["box"])
    for image in content["images"]:
        with Image.open(out / "pictures" / image["picture"]) as picture:
            assert max(picture.size) == 320  # five times the size of the network's


def test_a_folder_of_predictions_that_exists_is_refused(
    tmp_path: Path, run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["detect", "--predict", str(data / "val2017"), "--weights", str(run), "--device", "cpu"]
    for more, code in (([], 2), (["--overwrite", "--dry-run"], 0)):
        with pytest.raises(SystemExit) as exit_:
            cli.main([*words, "--out", str(tmp_path), *more])
        assert exit_.value.code == code
    assert "which exists; expected a new folder for the predictions" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_boxes_alone_from_a_pretrained_plain_vit(tmp_path: Path, pretrained: Path, data: Path) -> None:
    found = detect(tmp_path / "run", data, weights=str(pretrained), masks=False, steps=2, layer_decay=0.7, window=2)
    assert found.finished and found.mask_ap is None and found.box_ap is not None
    stored = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert "mask" not in stored and "val_mask_ap" not in stored
    opened = FORMAT.load(str(found.out))
    assert not opened.design.masks and opened.design.categories == list(shapes.NUMBERS.values())
    assert equal(weights.load_backbone(found.out).state_dict(), opened.network.trunk.model.state_dict())


def test_a_file_whose_description_was_changed_is_refused(tmp_path: Path, run: Path, pretrained: Path) -> None:
    with pytest.raises(RequestError, match="which holds no detector; expected a run of `fastmim detect`"):
        FORMAT.load(str(pretrained))
    stored, facts = weights.read(run)
    changes = [
        ({"channels": 10**9}, "a number is out of range"),
        ({"channels": 16}, "size mismatch|Error"),
        ({"masks": 1}, "a number is out of range"),
        ({"classes": [1, 2, 3]}, "its classes are no names"),
        ({"categories": [1, 2]}, "its classes have no numbers"),
        ({"more": 1}, "its metadata lacks something"),
    ]
    for change, message in changes:
        path = tmp_path / "changed.safetensors"
        kept = {name: value for name, value in facts.items() if name != "format"}
        weights.write(path, stored, kept | {"detector": facts["detector"] | change})
        with pytest.raises(RequestError, match=f"does not fit its description .*({message})"):
            FORMAT.load(str(path))


def test_a_run_keeps_to_its_classes(run: Path, data: Path, tmp_path: Path) -> None:
    other = shapes.draw_coco(tmp_path / "coco", counts=(8, 2))
    for part in ("train", "val"):
        content = shapes.read(other, part)
        content["categories"][0]["name"] = "box"
        shapes.write(other, part, content)
    with pytest.raises(RequestError, match="with classes box, disc, triangle; expected those that the run in .* began"):
        fastmim.detect(out=run, data=str(other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (0.0, 1.0)}, r"scale is \(0.0, 1.0\); expected 0 < smallest <= largest"),
        ({"num_pictures": -1}, "num_pictures is -1; expected 0"),
        ({"num_regions": 0}, "num_regions is 0; expected at least 1"),
        ({"compile": True}, "compile is True; expected no compilation"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        DetectConfig(**settings)


def test_nothing_to_validate_on(tmp_path: Path, data: Path) -> None:
    broken = shapes.draw_coco(tmp_path / "coco", counts=(8, 2))
    for path in (broken / "val2017").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(fastmim.RunError, match="none of the 2 images of .* can be used; expected some to validate on"):
        detect(tmp_path / "run", broken, steps=1, max_bad_share=1.0)


def test_recipes_give_settings(tmp_path: Path) -> None:
    for name, recipe in DETECT_RECIPES.items():
        config = opening.resolve(DetectConfig, {"recipe": name, "out": tmp_path / "run"}, recipes=DETECT_RECIPES)
        assert all(getattr(config, setting) == value for setting, value in recipe().items())


def test_the_plan_is_printed_without_training(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = detect(tmp_path / "run", data, dry_run=True)
    printed = capsys.readouterr().out
    assert not found.finished and not (tmp_path / "run").exists()
    for expected in (
        "8 images, 16 objects, boxes and masks; 3 classes (square, disc, triangle); 4 steps an epoch",
        "2 images, 64 px at the longer side",
        "network   convnext_atto with Mask R-CNN of 8 channels",
    ):
        assert expected in printed
    assert torch.initial_seed() == 0


def test_annotations_that_have_lost_their_masks_are_refused_on_resuming(tmp_path: Path, data: Path, run: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(data, tmp_path / "coco")
    for path in (tmp_path / "coco/annotations").iterdir():
        content = json.loads(path.read_text())
        for entry in content["annotations"]:
            del entry["segmentation"]
        path.write_text(json.dumps(content))
    with pytest.raises(RequestError, match="data is .*coco with boxes alone; the run in .*run began with masks: give"):
        detect(tmp_path / "run", tmp_path / "coco")
