"""Every published recipe makes two steps at its own sizes with a narrower network, and names its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fastmim
from conftest import losses
from fastmim import cli
from fastmim import config as configs
from fastmim.errors import RequestError
from fastmim.method.settings import PretrainConfig
from fastmim.published import FINETUNE_RECIPES, RECIPES, result
from fastmim.training import opening
from fastmim.training.settings import TrainConfig
from fastmim.transfer.classify.settings import FinetuneConfig

REDUCED: dict[str, dict[str, Any]] = {
    "vit_base_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "swin_base_patch4_window7_224": {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    "swin_large_patch4_window7_224": {"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    "pvt_v2_b2": {"embed_dims": [16, 32, 40, 64], "depths": [1, 1, 1, 1]},
    "cmt_s": {"embed_dims": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
    "twins_svt_small": {"embed_dims": [16, 32, 64, 128], "depths": [1, 1, 2, 1]},
    "convnext_base": {"dims": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
}
QUICK: dict[str, Any] = {
    "batch_size": 2,
    "log_every": 1,
    "num_workers": 0,
    "device": "cpu",
    "trackers": "none",
    "picture_every": "never",
}


PUBLISHED = [name for name in RECIPES if name != "adapt"]  # tests/test_adaptation.py has that one


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_makes_two_steps(name: str, tmp_path: Path, photos: Path) -> None:
    settings = RECIPES[name]()
    small = QUICK | {"backbone_args": REDUCED[settings["backbone"]], "steps": 3 if "stages" in settings else 2}
    run = fastmim.pretrain(recipe=name, data=str(photos), out=tmp_path, warmup="1 steps", **small)
    assert run.finished
    assert len(losses(tmp_path)) == small["steps"] and all(0 < loss < 10 for loss in losses(tmp_path))
    fastmim.load_backbone(tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_a_whole_config_and_names_its_result(name: str) -> None:
    config = configs.build(PretrainConfig, RECIPES[name]())
    assert config.epochs and config.batch_size >= 2048
    text = RECIPES[name].__doc__ or ""
    assert f"fastmim pretrain --recipe {name} " in text
    assert "%" in result(RECIPES[name]) or "o published schedule" in result(RECIPES[name])


def test_simmim_drops_the_learning_rate_at_epoch_700_of_800(tmp_path: Path, photos: Path) -> None:
    small = QUICK | {"backbone_args": REDUCED["vit_base_patch16_224"], "img_size": 64, "steps": 8, "warmup": "1 steps"}
    fastmim.pretrain(recipe="simmim-vit-b", data=str(photos), out=tmp_path, **small)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.5e-4 * 2 / 256] * 7 + [0.5e-5 * 2 / 256])


@pytest.mark.parametrize("name", FINETUNE_RECIPES)
def test_fine_tuning_recipes_name_their_result(name: str) -> None:
    assert "%" in result(FINETUNE_RECIPES[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "swin-b", "lr_drop": "late"}, "lr_drop is 'late'; expected a duration such as"),
        ({"recipe": "vitb"}, "recipe is 'vitb'; expected one of vit-b, .*did you mean vit-b"),
        ({"recipe": "swin-b", "masking": "drop"}, "cannot leave tokens out; expected a plain ViT"),
        ({"recipe": "mae-vit-b", "decoder": "linear"}, "cannot fill in dropped tokens; expected a transformer"),
        ({"recipe": "vit-b", "img_size": 16, "block": 32}, "img_size is 16; expected a multiple of the block of 32"),
        ({"recipe": "swin-b", "img_size": 16}, "img_size is 16; expected a multiple of the block of 32"),
        (
            {"recipe": "swin-b", "backbone_args": {"window_size": 5}},
            "window_size is 5, which does not fit the map of 32 x 32 at 128 px; expected one of 2, 4, 8, 16, 32: take",
        ),
        (
            {"recipe": "swin-b", "backbone_args": {"window_size": 0}},
            "args .'window_size': 0.: .*expected arguments that timm's swin_base",
        ),
    ],
)
def test_impossible_changes_of_a_recipe_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path, photos: Path
) -> None:
    recipe = RECIPES.get(settings["recipe"], dict)()
    small = {"backbone_args": REDUCED[recipe["backbone"]]} if recipe else {}
    with pytest.raises(RequestError, match=message):
        fastmim.pretrain(data=str(photos), out=tmp_path, steps=1, **(QUICK | small | settings))


def test_the_command_lists_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["recipes"])
    said = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "swin_base_patch4_window7_224, 192 px, 800 epochs, batch 2048" in said
    for name, recipe in (*RECIPES.items(), *FINETUNE_RECIPES.items()):
        assert f"  {name} " in said and result(recipe) in said
    listed = {(recipe.command, recipe.name): recipe for recipe in fastmim.recipes()}
    assert {command for command, _ in listed} == {"pretrain", "finetune", "segment", "detect"}
    assert (
        listed["pretrain", "swin-b"].settings == RECIPES["swin-b"]() and "arXiv" in listed["pretrain", "vit-b"].result
    )


@pytest.mark.parametrize(("config_class", "recipes"), [(PretrainConfig, RECIPES), (FinetuneConfig, FINETUNE_RECIPES)])
def test_recipes_give_the_settings_and_flags_override(
    tmp_path: Path, config_class: type[TrainConfig], recipes: dict[str, Any]
) -> None:
    for name, recipe in recipes.items():
        config = opening.resolve(config_class, {"recipe": name, "out": tmp_path / "run", "steps": 3}, recipes=recipes)
        expected = recipe() | {"recipe": name, "steps": 3, "epochs": None}
        assert {key: getattr(config, key) for key in expected} == expected
