"""`fastmim pretrain` refuses what it cannot do in one line, before it writes anything."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import fastmim
from fastmim import RequestError
from fastmim.method.visualise import visualise_run
from small_run import lines, pretrain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr", r"\(lr 0.01 -> 0.00015\): restore config.yaml, take another --out, or delete the run with --overwrite"),
        ("seed: 1", r"\(seed 0 -> 1\)"),
        ("backbone_args: {depth: 3}", r"\(backbone_args \{.*'depth': 2.*\} -> \{'depth': 3\}\)"),
    ],
)
def test_a_config_that_lost_or_changed_settings_is_not_believed(
    tmp_path: Path, photos: Path, change: str, message: str
) -> None:
    out = pretrain(tmp_path / "run", photos, betas=(0.9, 0.99)).out
    stored = yaml.safe_load((out / "config.yaml").read_text())
    key, _, value = change.partition(": ")
    changed = stored | {key: yaml.safe_load(value)} if value else {k: v for k, v in stored.items() if k != key}
    (out / "config.yaml").write_text(yaml.safe_dump(changed))
    message = r"differ from those of its checkpoint step_000000012 " + message
    with pytest.raises(RequestError, match=message):
        fastmim.pretrain(out=out)
    with pytest.raises(RequestError, match=message):
        visualise_run(out, out=tmp_path / "x.png")
    (out / "config.yaml").unlink()
    with pytest.raises(RequestError, match=r"\(lr 0.01 -> 0.02\)"):
        pretrain(out, photos, betas=(0.9, 0.99), lr=0.02)
    (out / "config.yaml").write_text(yaml.safe_dump(stored | {"save_every": 100, "log_every": 1}))
    assert fastmim.pretrain(out=out).finished


def test_the_directory_of_another_kind_of_run_is_refused(tmp_path: Path, pretrained: Path, labelled: Path) -> None:
    shutil.copytree(pretrained / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(RequestError, match=r"backbone 'vit_tiny.*' -> None.*target 'hog' -> no setting"):
        fastmim.finetune(data=str(labelled), weights=str(pretrained), out=tmp_path, device="cpu", img_size=32)


def test_a_fine_tuning_run_has_no_reconstructions(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("weights: runs/photos\nval_data: null\n")
    with pytest.raises(
        RequestError, match=r"a fine-tuning run, .* expected a pre-training run, such as .*\(runs/photos\)"
    ):
        visualise_run(tmp_path, out=tmp_path / "x.png")


def test_a_different_run_in_the_same_place_is_refused(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    pretrain(out, photos, steps=4)
    with pytest.raises(RequestError, match=r"holds another run \(mask_ratio 0.75 -> 0.5\).*--overwrite"):
        pretrain(out, photos, steps=8, mask_ratio=0.5)
    assert pretrain(out, photos, steps=8, mask_ratio=0.5, overwrite=True).finished
    assert len(lines(out)) == 4


def test_data_that_changed_under_a_run_is_refused(tmp_path: Path, photos: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    out = pretrain(tmp_path / "run", data).out
    (data / "00.jpg").rename(data / "new.jpg")
    with pytest.raises(RequestError, match="data is .*data, whose images have other names than those .* began with"):
        pretrain(out, data)
    (data / "new.jpg").unlink()
    with pytest.raises(RequestError, match="with 23 images; expected the 24 that the run in"):
        pretrain(out, data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "no/such/photos"}, "no/such/photos"),
        ({"batch_size": 25}, "24 images in .* are fewer than one batch of 25: lower --batch-size to 24 or less"),
        ({"img_size": 36}, "img_size is 36; expected whole HOG cells of 8 pixels under .* about 4 x 4: take 32 or 64"),
        ({"img_size": 100_000_000}, "img_size is 100000000; expected at most 8192 pixels for vit_tiny_patch16_224"),
        ({"stages": "32:0.5,100000000:0.5"}, "img_size is 100000000; expected at most 8192 pixels"),
        ({"backbone_args": {"depth": 0}}, "args .*: the model has no blocks; expected arguments that timm's vit_tiny"),
        ({"init": "x" * 300}, r"weights is 'x+\.\.\.x+'; expected a fastmim weights file or a finished run"),
        ({"block": 12}, "img_size is 32; expected a multiple of the block of 12 pixels: take 24 or 36, or set block"),
        ({"img_size": 48, "block": 32}, "img_size is 48; expected a multiple of the block of 32 pixels: take 32 or 64, or set block"),
        ({"block": 4}, "block is 4; expected a multiple of the backbone's stride of 8 pixels"),
        ({"mask_ratio": 0.99}, "mask_ratio is 0.99; with 16 blocks of 8 pixels nothing stays visible"),
        ({"backbone": "vit_tinny_patch16_224", "backbone_args": {}}, "vit_tiny_patch16_224"),
        ({"backbone": "resnetv2_50x1_bit", "backbone_args": {"depth": 3}}, "depth"),
        ({"recipe": "vit-bb"}, "recipe is 'vit-bb'; expected one of vit-b, swin-b, .*; did you mean"),
        ({"device": "cuda:7"}, "device is 'cuda:7'; expected one that this machine has"),
        ({"cuda_graphs": True, "compile": True}, "cuda_graphs is True on cpu for 1 process; expected one on a CUDA"),
        ({"cuda_graphs": True}, "cuda_graphs is True on cpu for 1 process without compilation; expected one on a CUDA"),
        ({"device": "gpu"}, "device is 'gpu'; expected one that this machine has: cpu.*, or auto"),
        ({"device": "meta"}, "device is 'meta'; expected one that this machine has"),
        ({"device": "privateuseone"}, "device is 'privateuseone'; expected one that this machine has"),
        ({"trackers": "wandb"}, "trackers names wandb, which is not installed; run: pip install"),
        ({"init": "none.safetensors"}, "weights is 'none.safetensors'; expected a fastmim weights file or a finished run"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(tmp_path: Path, photos: Path, settings: dict[str, Any], message: str) -> None:
    if settings.get("trackers") == "wandb" and shutil.which("wandb"):
        pytest.skip("wandb is installed")
    data = Path(settings.pop("data", photos))
    with pytest.raises(RequestError, match=message) as error:
        pretrain(tmp_path / "run", data, **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_missing_tracker_is_refused_before_the_plan(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastmim.training.trackers.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"trackers names mlflow, which is not installed; run: pip install"):
        pretrain(tmp_path / "run", photos, trackers="mlflow")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_a_directory_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(RequestError, match=str(tmp_path)):
        pretrain(tmp_path / "run", tmp_path)


def test_a_size_that_the_backbone_cannot_take_is_refused_before_the_run(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(RequestError, match="img_size is 52; expected whole HOG cells of 8 pixels"):
        pretrain(tmp_path / "run", photos, stages="32:0.5,52:0.5")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_directory_is_refused(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"out is .*file/run: Not a directory; expected a path that can be written"):
        pretrain(tmp_path / "file/run", photos)
    (tmp_path / "run/config.yaml/mine").mkdir(parents=True)
    not_a_file = r"config is .*run/config.yaml, which is not a file; expected the config of a run: remove it"
    with pytest.raises(RequestError, match=not_a_file):
        pretrain(tmp_path / "run", photos)
    (tmp_path / "run/config.yaml/mine").rename(tmp_path / "run/mine")
    (tmp_path / "run/config.yaml").rmdir()
    os.mkfifo(tmp_path / "run/config.yaml")
    with pytest.raises(RequestError, match=not_a_file):
        pretrain(tmp_path / "run", photos)
    (tmp_path / "run/config.yaml").unlink()

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RequestError, match=r"out is .*run: Input/output error; expected a directory that can be writ"):
        pretrain(tmp_path / "run", photos)


def test_too_few_visible_blocks_are_said(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block, said in ((16, True), (8, False)):
        pretrain(tmp_path / "run", photos, block=block, dry_run=True)
        note = "note      1 of 4 blocks visible, too few to predict the others from: raise --img-size"
        assert (note in capsys.readouterr().out) == said
