"""A model divided among processes (FSDP2) trains as a whole one does, and its checkpoints are those of whole models."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fastmim
from conftest import SMALL, losses
from fastmim.errors import RequestError
from fastmim.method.visualise import visualise_run
from fastmim.system import devices
from fastmim.training.logs import Logs
from processes import together

SWIN: dict[str, Any] = {
    "backbone": "swin_tiny_patch4_window7_224",
    "backbone_args": {"embed_dim": 24, "depths": [1, 1, 2, 1]},
    "img_size": 64,
}
ADVANCE = Logs.advance


def run(
    command: str, data: Path, out: Path, settings: dict[str, Any], count: int, patch: pytest.MonkeyPatch, stop: int = 0
) -> str:
    """Run a command in `count` processes, each asked to stop after a step, if one is given; what they said."""

    def advance(logs: Logs, step: int) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        ADVANCE(logs, step)

    patch.setattr(Logs, "advance", advance)
    statuses, said = together(command, data, out, *(count * [settings]))
    assert statuses == count * [75 if stop else 0], said
    return said


def same(one: Path, other: Path, atol: float = 1e-4) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return all(torch.allclose(ours[name], theirs[name], atol=atol) for name in ours) and ours.keys() == theirs.keys()


def test_divided_alone_whole_and_divided_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stages, accumulation and clipping; others can read what a divided run has written."""
    settings = SMALL | {"stages": "32:0.5,48:0.5", "micro_batch": 2, "clip": 0.1, "log_every": 1, "save_every": 1000}
    fastmim.pretrain(**settings, data=str(photos), out=tmp_path / "one")
    out = tmp_path / "turns"
    said = run("pretrain", photos, out, settings | {"shard": True}, 2, monkeypatch, stop=2)
    assert said.count("weights divided among 2 processes") == 1
    visualise_run(out, out=tmp_path / "picture.png", num_images=1)
    run("pretrain", photos, out, settings, 1, monkeypatch, stop=4)
    run("pretrain", photos, out, settings, 2, monkeypatch, stop=5)
    run("pretrain", photos, out, settings | {"shard": True, "picture_every": "12 steps"}, 2, monkeypatch)
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert same(out / "weights.safetensors", tmp_path / "one/weights.safetensors")
    assert fastmim.load_backbone(out, img_size=64)


@pytest.mark.parametrize(
    "settings", [SWIN, {"masking": "drop", "checkpoint_activations": True}], ids=["Swin", "dropped tokens"]
)
def test_divided_as_whole(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = SMALL | {"log_every": 1, "steps": 6} | settings
    fastmim.pretrain(**settings, data=str(photos), out=tmp_path / "one")
    run("pretrain", photos, tmp_path / "two", settings | {"shard": True}, 2, monkeypatch)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_finetuning_divided_as_whole(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With averaged weights and validation by the main process."""
    settings = {k: v for k, v in SMALL.items() if k != "picture_every"} | {"weights": "none", "log_every": 1}
    settings |= {"eval_every": "6 steps", "ema": 0.9, "mixup": 0.0, "cutmix": 0.0, "drop_path": 0.0}
    for name, shard in (("whole", False), ("divided", True)):
        run("finetune", labelled, tmp_path / name, settings | {"shard": shard}, 2, monkeypatch)
    assert losses(tmp_path / "divided") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert same(tmp_path / "divided/weights.safetensors", tmp_path / "whole/weights.safetensors")


def test_in_bfloat16_gradients_are_averaged_in_float32(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SMALL | {"log_every": 1, "steps": 4, "precision": "bf16"}
    fastmim.pretrain(**settings, data=str(photos), out=tmp_path / "one")
    run("pretrain", photos, tmp_path / "two", settings | {"shard": True}, 2, monkeypatch)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-2)
    [moments] = (tmp_path / "two/checkpoints/step_000000004").glob("optim*")
    assert {tensor.dtype for tensor in load_file(moments).values()} == {torch.float32}


def test_what_cannot_be_divided(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SMALL | {"shard": True, "backbone": "test_resnet", "backbone_args": {}, "img_size": 64}
    with pytest.raises(RequestError, match="shard is on, and test_resnet does not list its blocks; leave it off"):
        fastmim.pretrain(**settings, data=str(photos), out=tmp_path / "run")
    with pytest.raises(RequestError, match="micro_batch is 'auto' with shard, whose memory no trial can tell"):
        fastmim.pretrain(**SMALL | {"shard": True, "micro_batch": "auto"}, data=str(photos), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_memory_to_gather_a_divided_model(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "free_memory", lambda: 1000)
    settings = SMALL | {"shard": True}
    statuses, said = together("pretrain", photos, tmp_path / "run", settings, settings)
    assert statuses == [1, 1] and said.count("fastmim:") == 1
    assert "no room in host memory for the state of 0.00" in said and "which process 0 gathers to save it" in said
