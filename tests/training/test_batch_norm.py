"""Batch norms of several processes have the statistics of one process with all images."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import fastmim
from conftest import SMALL, losses
from fastmim.training.batch_norm import share_batch_norms
from processes import together


@pytest.mark.parametrize(
    "own",
    [
        {"backbone": "test_resnet"},
        {"backbone": "test_efficientnet", "stages": "64:0.5,96:0.5", "micro_batch": 4},  # norms with activations
        {"backbone": "test_efficientnet", "shard": True},
    ],
)
def test_two_processes_train_as_one(photos: Path, tmp_path: Path, own: dict[str, Any]) -> None:
    settings = SMALL | {"backbone_args": {}, "img_size": 64, "steps": 4, "log_every": 1, "lr": 1e-3} | own
    alone = {"micro_batch": 8} if "micro_batch" in own else {"shard": False}
    fastmim.pretrain(**(settings | alone), data=str(photos), out=tmp_path / "one")
    statuses, said = together("pretrain", photos, tmp_path / "two", settings, settings)
    assert statuses == [0, 0], said
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        if "running" in name or "tracked" in name:
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_activations_behind_norms_stay(device: str) -> None:
    """Also when the network is wrapped again, as at the start of each stage."""
    model = timm.create_model("test_efficientnet").eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        for _ in range(2):
            share_batch_norms(model, torch.device(device))
            assert torch.equal(model(images), before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    ("plain", "shape"),
    [
        (nn.BatchNorm1d(5, affine=False), (4, 5)),
        (nn.BatchNorm1d(5, momentum=None), (4, 5, 3)),
        (nn.BatchNorm3d(5, track_running_stats=False), (2, 5, 3, 3, 3)),
    ],
)
def test_a_single_process_has_torchs_numbers(
    plain: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without weights, with the mean of all batches, without running statistics; the sum of one changes nothing."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    torch.manual_seed(0)
    shared = copy.deepcopy(nn.Sequential(plain))
    share_batch_norms(shared, torch.device("cpu"))
    x = (3 * torch.randn(shape) + 1).to(dtype)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    found, expected = (norm(leaf) for norm, leaf in zip((shared[0], plain), leaves, strict=True))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for output in (found, expected):
        output.float().pow(3).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(shared[0].state_dict(), plain.state_dict())
