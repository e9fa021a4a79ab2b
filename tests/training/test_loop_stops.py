"""The loop when a loss is not finite, and when a signal comes."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastmim.errors import RunError
from fastmim.system.signals import Stopped
from fastmim.training import checkpoint, loop
from fastmim.training.schedule import Stage
from toy import STAGED, KilledError, Toy, batches, fit, killed_at, metrics, same


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
