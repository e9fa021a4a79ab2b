"""The settings of a study, its points, and the preflight check: impossible requests are refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fastmim
from fastmim.errors import RequestError
from fastmim.studies import settings as study_settings
from fastmim.studies.preflight import check, run_settings
from small_study import NETWORK, draw_classes, settings


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures of lying and upright bars."""
    return draw_classes(tmp_path_factory.mktemp("bars"))


def points_of(data: Path, **more: Any) -> dict[str, Any]:
    return {point.name: point for point in check(study_settings.build(settings(data, **more))).points}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("0.5h 1s", 1801)]
)
def test_budgets(text: str, seconds: float) -> None:
    assert study_settings.parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "soon", "2d", "0s", "-1h", "30m2h"])
def test_wrong_budgets(text: str) -> None:
    with pytest.raises(RequestError, match="expected a time such as 90s, 30m, 2h or 1h30m"):
        study_settings.parse_budget(text)


def test_labels_are_numbers_or_shares() -> None:
    assert study_settings.build({"labels": "10%,1%"}).num_labels(60_000) == (600, 6000)
    assert study_settings.build({"labels": "50, 7,7"}).num_labels(60_000) == (7, 50)
    with pytest.raises(RequestError, match="labels is 'few'; expected numbers or shares, such as 600,6000 or 1%,10%"):
        study_settings.build({"labels": "few"})


def test_points_are_all_combinations_and_scratch(bars: Path) -> None:
    points = points_of(bars, sweep={"target": ["hog", "pixels"], "encoder_depth": [0.5, 1]})
    assert list(points) == [
        "scratch",
        "target=hog encoder_depth=0.5",
        "target=hog encoder_depth=1",
        "target=pixels encoder_depth=0.5",
        "target=pixels encoder_depth=1",
    ]
    assert points["target=pixels encoder_depth=0.5"].config.encoder_depth == 0.5
    assert points["scratch"].config is None and points["scratch"].backbone_args == NETWORK


def test_one_at_a_time(bars: Path) -> None:
    points = points_of(bars, sweep={"target": ["hog", "pixels"], "encoder_depth": [1, 0.5]}, one_at_a_time=True)
    assert list(points) == ["scratch", "base", "target=pixels", "encoder_depth=0.5"]
    assert points["encoder_depth=0.5"].config.target == "hog"
    assert points["base"].swept == {"target": "hog", "encoder_depth": 1.0}


def test_a_teacher_serves_the_points_that_have_one(bars: Path, pretrained: Path) -> None:
    fixed = ["img_size=16", "batch_size=8", f"teacher={pretrained}"]
    sweep = {"target": ["hog", "random-projection", "hog+teacher"], "masks_per_image": [1, 4]}
    points = points_of(bars, sweep=sweep, set=fixed)
    teachers = {name: point.config.teacher for name, point in points.items() if point.config}
    assert set(teachers.values()) == {None, str(pretrained)} and len(teachers) == 6
    assert all((teacher is None) is ("teacher" not in name) for name, teacher in teachers.items())
    with pytest.raises(RequestError, match="target=teacher: target is teacher, and teacher is not given"):
        points_of(bars, sweep=["target=hog,teacher"])


def test_stages_are_separated_by_slashes(bars: Path) -> None:
    points = points_of(bars, sweep=["stages=none/8:0.5,16:0.5"])
    assert points["stages=none"].sizes == [16] and points["stages=8:0.5,16:0.5"].sizes == [8, 16]
    assert points_of(bars, sweep={"stages": [None, "8:0.5,16:0.5"]}).keys() == points.keys()


def test_each_network_has_its_own_scratch(bars: Path) -> None:
    networks = {"backbone": None, "backbone_args": {}, "set": ["img_size=64", "batch_size=8"]}
    points = points_of(bars, sweep=["backbone=resnet18,vit_tiny_patch16_224"], **networks)
    assert [name for name in points if "scratch" in name] == ["scratch resnet18", "scratch vit_tiny_patch16_224"]


def test_small_images_get_a_small_network_and_light_augmentation(bars: Path) -> None:
    request = check(study_settings.build(settings(bars, backbone=None, backbone_args={}, sweep=["target=hog"])))
    assert request.points[1].config and request.points[1].config.lr == 2e-3
    assert request.points[1].backbone_args["embed_dim"] == 96
    assert request.finetune["randaugment"] == "none" and request.finetune_size == 16


def test_pretraining_does_not_see_the_validation_images(bars: Path) -> None:
    request = check(study_settings.build(settings(bars)))
    assert request.num_images == request.num_train == 40 and request.num_val == 20
    assert not request.sees_validation
    assert check(study_settings.build(settings(bars / "train"))).sees_validation


def test_all_runs_have_the_range_of_the_study(bars: Path, tmp_path: Path) -> None:
    request = check(study_settings.build(settings(bars, range="0:4095")))
    for point in request.points:
        runs = run_settings(request, point, 0, tmp_path, steps=1, device="cpu", num_workers=0)
        assert {run["range"] for run in runs.values()} == {"0:4095"} and {"finetune-4", "probe"} < runs.keys()


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"data": ""}, "data is not given; expected labelled images"),
    ({"sweep": []}, "sweep is not given; expected settings to compare: --sweep target=hog,pixels"),
    ({"sweep": ["target"]}, "sweep is 'target'; expected SETTING=VALUE, such as target=hog,pixels"),
    ({"sweep": ["tagret=hog"]}, "unknown setting 'tagret'; did you mean target"),
    ({"sweep": ["seed=1,2"]}, "the study decides seed for all runs: use --seeds"),
    ({"sweep": ["target=hog,hog"]}, "expected each setting once and each value once"),
    ({"sweep": ["target=hog", "target=pixels"]}, "expected each setting once and each value once"),
    ({"sweep": ["mask_ratio=0.5,0.6"]}, "mask_ratio is both in sweep and in set; expected one of them"),
    ({"sweep": ["target=hog,hogs"]}, "target=hogs: target is 'hogs'; expected"),
    ({"sweep": ["stages=none/16:1"]}, "stages=16:1 is the same run as stages=none; expected points that differ"),
    (
        {"sweep": ["recipe=vit-b,vit-bb"], "backbone": None, "backbone_args": {}},
        "recipe=vit-bb: recipe is 'vit-bb'; expected one of .*; did you mean vit-b",
    ),
    ({"sweep": ["block=4,32"]}, "block=32: img_size is 16; expected a multiple of the block of 32 pixels: take 32"),
    (
        {
            "sweep": ["recipe=swin-b"],
            "set": ["masking=drop", "batch_size=8", "img_size=64", "decoder=32x1"],
            "backbone": "swin_tiny_patch4_window7_224",
            "backbone_args": {},
        },
        "recipe=swin-b: masking is 'drop', and swin_tiny_patch4_window7_224 at 64 px cannot leave tokens out; "
        "expected a plain ViT such as vit_small_patch16_224",
    ),
    (
        {
            "sweep": ["img_size=128"],
            "set": ["batch_size=8"],
            "backbone": "swin_tiny_patch4_window7_224",
            "backbone_args": {"window_size": 5},
        },
        "img_size=128: window_size is 5, which does not fit the map of 32 x 32 at 128 px; expected one of 2, 4, 8, 16",
    ),
    ({"sweep": ["stages=8:0.5,16:0.4"]}, "expected shares that sum to 1; these sum to 0.9"),
    (
        {"sweep": ["batch_size=64"], "set": ["img_size=16"]},
        "batch_size=64: .*40 images in .* are fewer than one batch of 64: add --set batch_size=40",
    ),
    ({"labels": "1,16"}, "--num-labels 1; expected at least one for each of the 2 classes"),
    ({"labels": "4,100"}, "--num-labels 100; expected .* at most the 40 training images"),
    ({"finetune_set": ["weights=x"]}, "finetune_set has weights, which the study decides for all runs"),
    ({"finetune_set": ["layer_dekay=1"]}, "unknown setting 'layer_dekay'; did you mean layer_decay"),
    ({"finetune_set": ["smoothing=2"]}, "smoothing is 2; expected 0"),
    ({"range": "12bit"}, "range is '12bit'; expected auto, 8bit, 16bit or LOW:HIGH"),
    ({"seeds": 0}, "seeds is 0; expected at least 1"),
    ({"epochs": -1}, "epochs is -1.0; expected more than 0"),
    ({"steps": None}, "budget is not given; expected how long the study may take: --budget 2h"),
    ({"equal": "cost"}, "equal is 'cost' with steps, which fixes the length of every pre-training; expected --budget"),
    ({"sweep": 3}, "sweep is 3; expected texts such as target=hog,pixels"),
    ({"bugdet": "1h"}, "unknown setting 'bugdet'; did you mean budget"),
    ({"device": "cuda:77"}, "device is 'cuda:77'; expected one that this machine has"),
]


@pytest.mark.parametrize(("more", "message"), IMPOSSIBLE)
def test_impossible_requests_are_refused(
    more: dict[str, Any], message: str, bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        fastmim.study(**settings(bars, **more))
    assert list(tmp_path.iterdir()) == []


def test_only_one_length_may_be_given() -> None:
    with pytest.raises(RequestError, match="budget and steps are given; expected one of them: drop the others"):
        study_settings.StudyConfig(budget="1h", steps=3)
