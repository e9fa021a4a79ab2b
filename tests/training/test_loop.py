"""The loop with a small model of its own: resume to the bit, stages, accumulation, non-finite steps, signals."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from fastmim.errors import RunError
from fastmim.system.run_directory import RunDirectory
from fastmim.system.signals import Stopped
from fastmim.training import checkpoint, loop, meter, optim
from fastmim.training.logs import Logs
from fastmim.training.plan import Plan
from fastmim.training.schedule import Stage
from fastmim.training.settings import TrainConfig

BATCH = 8


class Toy(nn.Module):
    """A network with dropout (so that randomness matters) and a position table that follows the size."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, size)[None])
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.5), nn.GELU(), nn.Linear(16, 1))

    def set_input_size(self, img_size: int) -> None:
        resized = nn.functional.interpolate(self.table[None], size=img_size, mode="linear")
        self.table = nn.Parameter(resized[0].detach())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = images + self.table
        return {"loss": (self.net(x[..., None])[..., 0] - x.sin()).square().mean()}


def batches(
    stage: Stage, first_step: int, *, spoil: Callable[[int], bool] = lambda step: False
) -> Iterator[dict[str, Any]]:
    for step in range(first_step, stage.stop):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(BATCH, stage.size, generator=generator)
        if spoil(step):
            images[0, 0] = float("nan")
        for part in images.chunk(stage.accumulation):
            yield {"images": part}


@dataclass
class Task:
    """A Toy with its batches."""

    model: nn.Module
    batches: Callable[[Stage, int], Iterator[dict[str, Any]]]
    events: Sequence[loop.Periodic] = ()

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def build_optimizer(self, model: nn.Module) -> AdamW:
        return optim.build(model, weight_decay=0.05, betas=(0.9, 0.95))

    def facts(self) -> dict[str, Any]:
        return {"num_images": 100, "stages": []}

    def periodic(self, logs: Logs) -> Sequence[loop.Periodic]:
        return self.events


class SteadyPlan(Plan):
    def learning_rate(self, step: int) -> float:
        return 1e-2


def fit(
    out: Path,
    *,
    stages: list[Stage] | None = None,
    run: dict[str, Any] | None = None,
    stream: Callable[[Stage, int], Iterator[dict[str, Any]]] = batches,
    model: nn.Module | None = None,
    periodic: Sequence[loop.Periodic] = (),
    compile: bool = False,
    advice: str = "",
) -> nn.Module:
    """Run `loop.fit` on a Toy in `out`, resuming what is there."""
    out.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = model or Toy()
    found = checkpoint.newest(out / "checkpoints")
    stages = stages or [Stage(4, 0, 20, 1)]
    logs = Logs(RunDirectory(out), total_steps=stages[-1].stop, step=found.step if found else 0)
    options: dict[str, Any] = {"save_every": 5, "log_every": 2} | (run or {})
    plan = SteadyPlan(
        num_images=100,
        batch_size=BATCH,
        steps_per_epoch=10,
        total_steps=stages[-1].stop,
        warmup_steps=0,
        peak_lr=1e-2,
        stages=stages,
        device=torch.device("cpu"),
        bf16=False,
        compile=compile,
        num_workers=0,
    )
    config = TrainConfig(out=out, seed=1, batch_size=BATCH, **options)
    try:
        loop.fit(Task(model, stream, periodic), config, plan, logs=logs, resume_from=found, faster_data=advice)
    finally:
        logs.close()
    return model


class KilledError(Exception):
    """Stands for the process being gone."""


def killed_at(
    step: int, source: Callable[[Stage, int], Iterator[dict[str, Any]]] = batches
) -> Callable[[Stage, int], Iterator[dict[str, Any]]]:
    def stream(stage: Stage, first_step: int) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(source(stage, first_step)):
            if first_step + number // stage.accumulation == step:
                raise KilledError
            yield batch

    return stream


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


STAGED = [Stage(4, 0, 10, 1), Stage(6, 10, 16, 2), Stage(9, 16, 20, 4)]


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


def test_a_non_finite_step_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    calls: list[dict[str, Tensor]] = []

    def remember(step: int) -> dict[str, float]:
        calls.append({k: v.clone() for k, v in model.state_dict().items()})
        return {}

    torch.manual_seed(0)
    model = Toy()
    spoilt = functools.partial(batches, spoil=lambda step: step == 6)
    fit(tmp_path / "run", model=model, stream=spoilt, periodic=[(1, remember)])
    assert all(torch.equal(calls[5][k], calls[6][k]) for k in calls[5])  # the 7th step left the weights alone
    assert not torch.equal(calls[6]["table"], calls[7]["table"])
    last = metrics(tmp_path / "run")[-1]
    assert last["skipped_steps"] == 1
    assert math.isfinite(last["loss"])


@pytest.mark.parametrize("log_every", [2, 1000])
def test_ten_non_finite_steps_in_a_row_stop_the_run(tmp_path: Path, log_every: int) -> None:
    with pytest.raises(RunError, match=r"not finite in 10 steps in a row, up to step 14; .*lower the learning rate"):
        fit(
            tmp_path / "run",
            stream=functools.partial(batches, spoil=lambda step: step >= 4),
            run={"log_every": log_every},
        )
    saved = load_file(tmp_path / "run/nonfinite_batch.safetensors")
    assert saved["images"].isnan().any()


def test_a_line_without_a_finite_step_is_valid_json(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        fit(tmp_path / "run", stream=functools.partial(batches, spoil=lambda step: step >= 4))
    assert metrics(tmp_path / "run")[-1]["loss"] is None  # valid JSON, where NaN would not be


def test_non_finite_steps_are_counted_across_interruptions(tmp_path: Path) -> None:
    spoilt = functools.partial(batches, spoil=lambda step: step >= 4)
    with pytest.raises(KilledError):
        fit(tmp_path / "run", stream=killed_at(12, spoilt))
    with pytest.raises(RunError, match="not finite in 10 steps in a row, up to step 14"):
        fit(tmp_path / "run", stream=spoilt)


def test_metrics_of_a_killed_run_are_those_of_an_uninterrupted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where lines are further apart than checkpoints, and with steps that were skipped."""
    spoilt = functools.partial(batches, spoil=lambda step: step in (3, 6, 12))
    run = {"log_every": 7, "save_every": 2}
    fit(tmp_path / "whole", stream=spoilt, run=run)
    for step in (5, 9, 18):
        with pytest.raises(KilledError):
            fit(tmp_path / "killed", stream=killed_at(step, spoilt), run=run)
    fit(tmp_path / "killed", stream=spoilt, run=run)
    whole, killed = lines_without_times(tmp_path / "whole"), lines_without_times(tmp_path / "killed")
    assert killed == whole and [line["skipped_steps"] for line in whole] == [2, 3, 3]
    said = "skipped 3 of 20 steps: their loss or gradient was not finite\n"
    assert capsys.readouterr().out.count(said) == 2


def lines_without_times(out: Path) -> list[dict[str, Any]]:
    times = {"time", "images_per_s", "seconds_per_step", "data_wait_share", "memory_gb"}
    return [{key: value for key, value in line.items() if key not in times} for line in metrics(out)]


def test_a_checkpoint_without_the_sums_of_the_next_line_resumes(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    with pytest.raises(KilledError):
        fit(tmp_path / "run", stream=killed_at(7))
    path = checkpoint.newest(tmp_path / "run/checkpoints").path / "manifest.json"  # type: ignore[union-attr]
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in manifest.items() if key not in ("meter", "crc32")}))
    assert same(fit(tmp_path / "run"), fit(tmp_path / "whole"))


def test_a_full_disk_does_not_hide_that_the_loss_was_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "save_tensors", refuse)
    with pytest.raises(RunError, match=r"the last batch could not be saved \(\[Errno 28\] No space left on device\)"):
        fit(tmp_path / "run", stream=functools.partial(batches, spoil=lambda step: step >= 4))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    def stream(stage: Stage, first_step: int) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(batches(stage, first_step), start=first_step):
            if step == 8 and first_step == 0:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    fit(tmp_path / "run", stream=stream)
    assert checkpoint.newest(tmp_path / "run/checkpoints").step == 8  # type: ignore[union-attr]
    assert signal.getsignal(number) is before
    assert same(fit(tmp_path / "run"), fit(tmp_path / "whole"))


@pytest.mark.parametrize(("step", "saved"), [(0, None), (8, 8), (16, 16)])
def test_a_signal_saves_while_no_data_comes(tmp_path: Path, step: int, saved: int | None) -> None:
    """Also at the start of a stage, whose shapes are not those of the steps that were made."""
    whole = fit(tmp_path / "whole", stages=STAGED)
    fit(tmp_path / "run", stages=STAGED, stream=stalls_at(step))
    found = checkpoint.newest(tmp_path / "run/checkpoints")
    assert (found and found.step) == saved
    assert same(fit(tmp_path / "run", stages=STAGED), whole)


def stalls_at(step: int) -> Callable[[Stage, int], Iterator[dict[str, Any]]]:
    def stream(stage: Stage, first_step: int) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(batches(stage, first_step)):
            if first_step + number // stage.accumulation == step:
                os.kill(os.getpid(), signal.SIGTERM)
                raise Stopped("stopped")
            yield batch

    return stream


@pytest.mark.parametrize("at", [6, 20])
def test_a_signal_saves_while_an_evaluation_waits_for_data(tmp_path: Path, at: int) -> None:
    def evaluate(step: int) -> dict[str, float]:
        if step == at and not stalled:
            stalled.append(step)
            raise Stopped("stopped")
        return {"knn": 1.0}

    stalled: list[int] = []
    options: dict[str, Any] = {"periodic": [(1, evaluate)], "run": {"save_every": 15}}
    with pytest.raises(Stopped) if at == 20 else nullcontext():
        fit(tmp_path / "run", **options)
    assert checkpoint.newest(tmp_path / "run/checkpoints").step == (6 if at == 6 else 15)  # type: ignore[union-attr]
    assert same(fit(tmp_path / "run", **options), fit(tmp_path / "whole"))
    assert metrics(tmp_path / "run")[-1]["knn"] == 1.0


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    free, clipped = fit(tmp_path / "free"), fit(tmp_path / "clipped", run={"clip": 1e-9})
    assert not same(free, clipped)
    assert metrics(tmp_path / "clipped")[0]["grad_norm"] > 1e-3  # the norm before clipping is what is logged


def test_periodic_numbers_are_logged_and_the_end_is_always_included(tmp_path: Path) -> None:
    fit(tmp_path / "run", periodic=[(8, lambda step: {"knn": float(step)})])
    assert [line["knn"] for line in metrics(tmp_path / "run") if "knn" in line] == [8.0, 16.0, 20.0]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_is_eager(tmp_path: Path) -> None:
    eager, compiled = (
        fit(tmp_path / str(compile), stages=STAGED[:1], compile=compile, model=without_dropout())
        for compile in (False, True)
    )
    for a, b in zip(eager.state_dict().values(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


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
