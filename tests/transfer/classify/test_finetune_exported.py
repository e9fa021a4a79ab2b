"""A fine-tuned classifier in other hands: the exported preprocessing reproduces what its validation measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

import fastmim
from conftest import SMALL
from fastmim.data.labelled import open_labelled
from tuning import PLAIN, finetune

# A network that takes images of any size, and one that is made for one size.
NETWORKS = {
    "any size": {"backbone": "resnet10t", "backbone_args": {}},
    "one size": {key: SMALL[key] for key in ("backbone", "backbone_args")},
}


@pytest.fixture(scope="module", params=NETWORKS)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Any:
    out = tmp_path_factory.mktemp("tuned") / "run"
    means = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    settings = PLAIN | NETWORKS[request.param] | means | {"img_size": 64, "eval_crop": 0.75, "steps": 16, "lr": 0.1}
    return finetune(out, labelled, eval_every="16 steps", **settings)


def test_the_exported_preprocessing_gives_the_validated_numbers(tuned: Any, labelled: Path, tmp_path: Path) -> None:
    result = fastmim.export(tuned.out, to="timm", out=tmp_path / "classifier")
    model = timm.create_model(f"local-dir:{result.path}", pretrained=True).eval()
    data = timm.data.resolve_data_config(model=model)
    assert data == {
        "input_size": (3, 64, 64), "interpolation": "bicubic", "crop_pct": 0.75, "crop_mode": "center",
        "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
    }  # fmt: skip
    transform: Any = timm.data.create_transform(**data, is_training=False)
    val = open_labelled(str(labelled)).val
    images = [transform(Image.open(val.name(index)).convert("RGB")) for index in range(len(val))]
    with torch.no_grad():
        logits: Tensor = model(torch.stack(images))
    measured = json.loads((tuned.out / "evaluation.json").read_text())
    assert val.labels is not None
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(val.labels)).item()
    assert (logits.argmax(1).numpy() == val.labels).mean() == measured["val_top1"] == tuned.top1
    assert loss == pytest.approx(measured["val_loss"], rel=0.02)  # decoders and resizing round differently
    assert "for images of 64 px: the central 75 % of the shorter side, resized bicubically" in result.describe()
    assert "validated" not in result.describe()


def test_other_formats_say_how_to_prepare_images(tuned: Any, tmp_path: Path) -> None:
    fastmim.export(tuned.out, to="torch-export", out=tmp_path / "classifier.pt2")
    about = {"fastmim.json": ""}
    torch.export.load(tmp_path / "classifier.pt2", extra_files=about)
    said = json.loads(about["fastmim.json"])
    assert said["img_size"] == 64 and said["crop_pct"] == 0.75 and said["interpolation"] == "bicubic"
    assert said["classes"] == ["blue", "green", "red"] and said["mean"] == [0.4, 0.5, 0.6]


def test_another_size_is_said_not_to_be_the_validated_one(labelled: Path, tmp_path: Path) -> None:
    finetune(tmp_path / "run", labelled, steps=2, **PLAIN | NETWORKS["any size"])
    result = fastmim.export(tmp_path / "run", to="timm", out=tmp_path / "classifier", img_size=48)
    assert "validated at 32 px: at 48 px its scores may differ" in result.describe()
