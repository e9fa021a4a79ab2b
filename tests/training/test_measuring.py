"""A function of the user's that measures a run as it trains: its numbers, its failures, and that it disturbs nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastmim
from conftest import SMALL
from fastmim.errors import RequestError, RunError
from fastmim.method.mim import MIM
from fastmim.training import measuring
from tuning import equal, tensors

FEW = SMALL | {"steps": 6, "save_every": 2}


def rude(step: int, model: MIM) -> dict[str, float]:
    """Measure with gradients, seeds and dice of its own."""
    random.seed(step)
    np.random.seed(step)
    torch.manual_seed(step)
    assert not model.training and not torch.is_grad_enabled()
    with torch.enable_grad():
        loss = model(torch.rand(2, 3, 32, 32))["loss"]
        loss.backward()
    return {"own": step / 2, "tensor": torch.tensor(0.5)}  # type: ignore[dict-item]


def test_numbers_are_logged_and_training_is_as_without(photos: Path, tmp_path: Path) -> None:
    plain = fastmim.pretrain(data=photos, out=tmp_path / "plain", **FEW)
    state = random.getstate(), np.random.get_state()[1].tolist()
    measured = fastmim.pretrain(
        data=photos, out=tmp_path / "measured", periodic=rude, periodic_every="2 steps", **FEW | {"report": "auto"}
    )
    assert equal(tensors(plain.out), tensors(measured.out))
    assert state == (random.getstate(), np.random.get_state()[1].tolist())
    found = [(line["step"], line["own"], line["tensor"]) for line in measured.metrics if "own" in line]
    assert found == [(2, 1.0, 0.5), (4, 2.0, 0.5), (6, 3.0, 0.5)]
    assert ">Own<" in (measured.out / "report.html").read_text()
    logged = {name for line in plain.metrics for name in line}
    assert logged <= measuring._TAKEN


def test_a_run_that_it_ended_resumes_to_the_bit(photos: Path, tmp_path: Path) -> None:
    whole = fastmim.pretrain(data=photos, out=tmp_path / "whole", **FEW)

    def fails(step: int, model: MIM) -> dict[str, float]:
        return {"a": 1 / (3 - step)}

    settings: Any = FEW | {"data": photos, "out": tmp_path / "ended"}
    said = r"periodic: fails failed at step 3 \(ZeroDivisionError: float division by zero\); mend it, and make the same"
    with pytest.raises(RunError, match=said.replace("float ", ".*")):
        fastmim.pretrain(**settings, periodic=fails, periodic_every="1 steps")
    assert fastmim.pretrain(**settings, periodic=lambda step, model: None).finished
    assert equal(tensors(whole.out), tensors(tmp_path / "ended"))
    lines = [json.loads(line) for line in (tmp_path / "ended/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "a" in line] == [1, 2]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("0.5", "periodic: <lambda> returned '0.5'; expected a dict of numbers, such as {'knn': 0.5}"),
        ({"a": "much"}, "returned {'a': 'much'}; expected a dict of numbers"),
        ({1: 0.5}, "returned {1: 0.5}; expected a dict of numbers"),
        ({"loss": 0.5}, "returned 'loss', which fastmim logs itself; expected another name"),
    ],
)
def test_what_is_no_dict_of_numbers(found: Any, message: str) -> None:
    measure = measuring.measuring(lambda step, model: found, torch.nn.Linear(1, 1), torch.device("cpu"))
    with pytest.raises(RunError, match=message):
        measure(1)


def test_what_is_no_function_or_no_interval(photos: Path, tmp_path: Path) -> None:
    settings: Any = FEW | {"data": photos, "out": tmp_path}
    with pytest.raises(RequestError, match="periodic is 3; expected a function of the step and the model"):
        fastmim.pretrain(**settings, periodic=3)
    with pytest.raises(RequestError, match="periodic_every is 'often'; "):
        fastmim.pretrain(**settings, periodic=rude, periodic_every="often")
