"""What a run says: a bar on a terminal, lines elsewhere, events for TensorBoard, valid JSON always."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fastmim.errors import RequestError
from fastmim.training.logs import Logs
from fastmim.training.run_directory import RunDirectory
from fastmim.training.trackers import open_trackers

METRICS = {
    "epoch": 1.5,
    "loss": 0.25,
    "images_per_s": 1234.0,
    "seconds_per_step": 2.0,
    "data_wait_share": 0.43,
}


def test_plain_lines_say_step_loss_rate_wait_and_time_left(tmp_path: Path) -> None:
    text = io.StringIO()
    logs = Logs(RunDirectory(tmp_path), total_steps=100, console=Console(file=text, width=200))
    logs.log(10, METRICS)
    logs.close()
    assert text.getvalue() == ("step 10/100  epoch 1.5  loss 0.2500  1,234 images/s  data wait 43%  0:03:00 left\n")


def test_a_terminal_gets_one_live_line(tmp_path: Path) -> None:
    text = io.StringIO()
    logs = Logs(RunDirectory(tmp_path), total_steps=100, console=Console(file=text, width=120, force_terminal=True))
    logs.log(10, METRICS)
    logs.advance(11)
    logs.close()
    last = text.getvalue().replace("\x1b[2K", "\r").split("\r")[-1]
    assert "step 11/100" in last and "loss 0.2500" in last and "data wait 43%" in last


def test_lines_after_the_checkpoint_are_dropped_on_resuming(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"step": 8, "lo')
    Logs(RunDirectory(tmp_path), total_steps=100, step=4).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4]


def test_tensorboard_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = open_trackers((), auto=True, out=tmp_path, settings={}, step=0)
    logs = Logs(RunDirectory(tmp_path), total_steps=100, trackers=trackers)
    logs.log(10, METRICS)
    logs.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 0.25)]


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmim.training.trackers.find_spec", lambda name: None)
    with pytest.raises(
        RequestError, match=r"trackers names mlflow, which is not installed; run: pip install 'fastmim\[mlflow\]'"
    ):
        open_trackers(("mlflow",), auto=False, out=tmp_path, settings={}, step=0)
    assert open_trackers((), auto=True, out=tmp_path, settings={}, step=0) == []
