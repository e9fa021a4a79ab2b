"""The loop: resume to the bit, stages, accumulation, clipping, compilation, metrics."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmim.training import checkpoint, loop, meter, optim
from fastmim.training.schedule import Stage
from toy import BATCH, STAGED, KilledError, Toy, batches, fit, killed_at, metrics, same


@pytest.mark.parametrize("stages", [[Stage(4, 0, 20, 1)], STAGED], ids=["one stage", "three stages"])
@pytest.mark.parametrize("step", [3, 7, 10, 11, 16, 19])
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, stages: list[Stage], step: int) -> None:
    whole = fit(tmp_path / "whole", stages=stages)
    with pytest.raises(KilledError):
        fit(tmp_path / "killed", stages=stages, stream=killed_at(step))
    resumed = fit(tmp_path / "killed", stages=stages)
    assert same(whole, resumed)
    ours, theirs = (
        [{k: line[k] for k in ("step", "loss", "images", "epoch", "grad_norm")} for line in metrics(tmp_path / run)]
        for run in ("killed", "whole")
    )
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]  # no line twice, none lost
    assert ours == theirs


def test_a_checkpoint_exactly_at_a_boundary_resumes(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", stages=STAGED, run={"save_every": 10})
    with pytest.raises(KilledError):
        fit(tmp_path / "killed", stages=STAGED, stream=killed_at(12), run={"save_every": 10})
    assert checkpoint.newest(tmp_path / "killed/checkpoints").step == 10  # type: ignore[union-attr]
    assert same(whole, fit(tmp_path / "killed", stages=STAGED, run={"save_every": 10}))


def test_resizing_carries_the_moments(tmp_path: Path) -> None:
    model = Toy()
    build = functools.partial(optim.build, weight_decay=0.05, betas=(0.9, 0.95))
    optimizer = build(model)
    model(torch.randn(8, 4))["loss"].backward()
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    optimizer.step()
    before = optim.named_state(model, optimizer)
    moment, other = before["table"]["exp_avg"].clone(), before["net.0.weight"]["exp_avg"].clone()
    after = optim.named_state(model, optim.resize(model, optimizer, 7, rebuild=build))
    expected = nn.functional.interpolate(moment[None], size=7, mode="linear")[0]
    torch.testing.assert_close(after["table"]["exp_avg"], expected)
    assert (after["table"]["exp_avg_sq"] >= before["table"]["exp_avg_sq"].min()).all()
    assert torch.equal(after["net.0.weight"]["exp_avg"], other)
    assert after["table"]["step"].item() == 1


def without_dropout() -> nn.Module:
    torch.manual_seed(0)
    model = Toy()
    model.net[1].p = 0.0
    return model


def test_accumulation_is_one_large_batch(tmp_path: Path) -> None:
    one = fit(tmp_path / "one", model=without_dropout())
    four = fit(tmp_path / "four", model=without_dropout(), stages=[Stage(4, 0, 20, 4)])
    for a, b in zip(one.state_dict().values(), four.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Casts(TorchDispatchMode):
    """Counts the casts of some tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.addresses, self.number = {tensor.data_ptr() for tensor in tensors}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.addresses
        return func(*args, **(kwargs or {}))


def test_weights_are_cast_once_a_step_however_many_micro_batches() -> None:
    model = without_dropout()
    micro_batches = [next(batches(Stage(4, step, 20, 1), step)) for step in range(4)]
    alone = []
    for batch in micro_batches:  # each with casts of its own
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch)["loss"]
        alone.append(torch.autograd.grad(loss / 4, model.parameters()))
    optimizer = optim.build(model, weight_decay=0.05, betas=(0.9, 0.95))
    counts = meter.Meter(0, device=torch.device("cpu"), batch_size=BATCH, steps_per_epoch=1)
    forward = loop.make_forward(model, dict, torch.device("cpu"), bf16=True, compile=False)
    gradients: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: gradients.extend(p.grad.clone() for p in model.parameters()))
    with Casts(model.net.parameters()) as casts:
        loop.train_step(model, forward, iter(micro_batches), optimizer, counts, learning_rate=1e-3, accumulation=4)
    assert casts.number == 4  # two weights and two biases
    for found, *parts in zip(gradients, *alone, strict=True):
        assert torch.equal(found, functools.reduce(torch.add, parts))


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    free, clipped = fit(tmp_path / "free"), fit(tmp_path / "clipped", run={"clip": 1e-9})
    assert not same(free, clipped)
    assert metrics(tmp_path / "clipped")[0]["grad_norm"] > 1e-3  # the norm before clipping is what is logged


def test_periodic_numbers_are_logged_and_the_end_is_always_included(tmp_path: Path) -> None:
    fit(tmp_path / "run", periodic=[(8, lambda step: {"knn": float(step)})])
    assert [line["knn"] for line in metrics(tmp_path / "run") if "knn" in line] == [8.0, 16.0, 20.0]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_is_eager(tmp_path: Path) -> None:
    eager, compiled, recorded = (
        fit(tmp_path / name, stages=STAGED, model=without_dropout(), **dict.fromkeys(name.split(), True))
        for name in ("", "compile", "compile cuda_graphs")  # which only a GPU records: here the compiler passes over it
    )
    for a, b, c in zip(*(model.state_dict().values() for model in (eager, compiled, recorded)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert torch.equal(b, c)


def test_rates_leave_out_the_steps_that_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of each of two stages takes a minute, and the others a second, by a clock of their own."""
    clock, sizes = [0.0], set()

    def compile(function: Any, **_: Any) -> Any:
        def run(batch: Any) -> Tensor:
            clock[0] += 1.0 if batch["images"].shape[-1] in sizes else 60.0
            sizes.add(batch["images"].shape[-1])
            loss: Tensor = function(batch)
            return loss

        return run

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    fit(tmp_path / "run", stages=[Stage(4, 0, 10, 1), Stage(7, 10, 20, 1)], compile=True, run={"log_every": 4})
    assert [line["seconds_per_step"] for line in metrics(tmp_path / "run")] == [1.0] * 5


def test_metrics_say_what_the_run_directory_promises(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    line = metrics(tmp_path / "run")[-1]
    promised = {
        "step",
        "time",
        "images",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "images_per_s",
        "data_wait_share",
        "memory_gb",
    }
    assert promised <= line.keys()
    assert (line["step"], line["images"], line["epoch"]) == (20, 160, 2.0)
    assert 0 <= line["data_wait_share"] <= 1
    assert abs(datetime.fromisoformat(line["time"]) - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(("share", "advice"), [(0.3, "pack it"), (1.1, "pack it"), (0.3, "")])
def test_a_device_that_waits_for_data_is_pointed_out_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, share: float, advice: str
) -> None:
    def slow(stage: Stage, first_step: int) -> Iterator[dict[str, Any]]:
        for batch in batches(stage, first_step):
            time.sleep(0.01)
            yield batch

    monkeypatch.setattr(meter, "_SHOWN_AFTER", 0.03)
    monkeypatch.setattr(meter, "_TOO_LONG", share)
    fit(tmp_path, stream=slow, advice=advice)
    said = capsys.readouterr().out
    assert said.count("of the time for data: pack it") == (1 if share < 1 and advice else 0)
