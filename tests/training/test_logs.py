"""What a run says: a bar on a terminal, lines elsewhere, events for TensorBoard, valid JSON always."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fastmim.errors import RequestError
from fastmim.system.run_directory import RunDirectory
from fastmim.training.logs import Logs
from fastmim.training.trackers import TRACKERS, open_trackers

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


def test_the_time_left_is_told_from_the_first_step_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step, in which workers start, counts until there is a second one; lines come every ten seconds."""
    text, clock = io.StringIO(), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    logs = Logs(RunDirectory(tmp_path), total_steps=2201, console=Console(file=text, width=200))
    for step, now in ((1, 80.0), (2, 86.0), (3, 92.0), (4, 98.0)):
        clock[0] = now
        logs.advance(step)
    logs.log(4, METRICS)
    clock[0] = 120.0
    logs.advance(5)
    logs.close()
    assert text.getvalue().splitlines() == [
        "step 1/2201  80 s a step  48:53:20 left",
        "step 3/2201  6 s a step  3:39:48 left",
    ]


def test_the_time_that_compiling_takes_is_not_a_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, clock = io.StringIO(), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    logs = Logs(RunDirectory(tmp_path), total_steps=2201, console=Console(file=text, width=200), compiled=True)
    for step, now in ((1, 80.0), (2, 86.0), (3, 92.0)):
        clock[0] = now
        logs.advance(step)
    clock[0] = 110.0
    logs.log(5, METRICS | {"seconds_per_step": 7.5})
    logs.close()
    assert text.getvalue().splitlines() == [
        "step 1/2201  compiled in 80 s",
        "step 3/2201  6 s a step  3:39:48 left",
        "step 5/2201  epoch 1.5  loss 0.2500  1,234 images/s  data wait 43%  4:34:30 left",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_bar_fits_its_terminal(tmp_path: Path, width: int) -> None:
    text = io.StringIO()
    logs = Logs(RunDirectory(tmp_path), total_steps=2200, console=Console(file=text, width=width, force_terminal=True))
    logs.advance(1)
    logs.log(10, METRICS)
    logs.advance(11)
    logs.close()
    shown = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]", text.getvalue())]
    assert max(map(len, shown)) <= width
    assert all(fact in shown[-2] for fact in ("step 11/2200", "1:12:58"))


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
    trackers = open_trackers((), auto=True, out=tmp_path, settings={}, step=0)
    logs = Logs(RunDirectory(tmp_path), total_steps=100, trackers=trackers)
    logs.log(10, METRICS)
    logs.close()
    assert scalars(tmp_path) == [(10, 0.25)]


def test_tensorboard_shows_a_resumed_run_as_one(tmp_path: Path) -> None:
    for step in (0, 20):
        logs = Logs(
            RunDirectory(tmp_path),
            total_steps=100,
            step=step,
            trackers=open_trackers(("tensorboard",), auto=False, out=tmp_path, settings={}, step=step),
        )
        for logged in (10, 20, 30):
            if logged > step:
                logs.log(logged, METRICS | {"loss": step + logged})
        logs.close()
    assert scalars(tmp_path) == [(10, 10), (20, 20), (30, 50)]


def scalars(out: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


class Broken:
    """A tracker that fails in one of its methods."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.calls: list[str] = []
        self.call("open")

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            raise ConnectionError("no server\nat all")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.call("log")

    def close(self) -> None:
        self.call("close")


@pytest.mark.parametrize(("where", "calls"), [("open", 1), ("log", 2), ("close", 4)])
def test_a_tracker_that_fails_is_left_out_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, calls: int
) -> None:
    made: list[Broken] = []

    def make(*_: object) -> Broken:
        made.append(Broken.__new__(Broken))
        made[0].__init__(where)  # type: ignore[misc]
        return made[0]

    def track() -> None:
        trackers = open_trackers(("tensorboard",), auto=False, out=tmp_path, settings={}, step=0)
        with Logs(RunDirectory(tmp_path), total_steps=100, trackers=trackers) as logs:
            logs.log(10, METRICS)
            logs.log(20, METRICS)

    monkeypatch.setitem(TRACKERS, "tensorboard", make)
    with pytest.warns(UserWarning, match="tensorboard failed .no server.: the run goes on without it") as warned:
        track()
    assert len(warned) == 1 and len(made[0].calls) == calls
    assert [line["step"] for line in RunDirectory(tmp_path).read_metrics()] == [10, 20]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_tensorboard_on_a_full_disk_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    (tmp_path / "tensorboard").mkdir()
    name = f"events.out.tfevents.0.000000.{socket.gethostname()}.{os.getpid()}"
    (tmp_path / "tensorboard" / name).symlink_to("/dev/full")
    with pytest.warns(UserWarning, match="tensorboard failed .*No space left on device"):
        [tracker] = open_trackers(("tensorboard",), auto=False, out=tmp_path, settings={}, step=0)
    tracker.log(1, METRICS)
    tracker.close()
    assert capfd.readouterr().err == ""


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmim.training.trackers.find_spec", lambda name: None)
    with pytest.raises(
        RequestError, match=r"trackers names mlflow, which is not installed; run: pip install 'fastmim\[mlflow\]'"
    ):
        open_trackers(("mlflow",), auto=False, out=tmp_path, settings={}, step=0)
    assert open_trackers((), auto=True, out=tmp_path, settings={}, step=0) == []


RESIZED = """
import sys, time
from pathlib import Path
from fastmim.system.run_directory import RunDirectory
from fastmim.training.logs import Logs

with Logs(RunDirectory(Path(sys.argv[1])), total_steps=2200) as logs:
    for step in range(1, 9):
        logs.advance(step)
    sys.stdin.readline()  # the terminal has been resized
    for step in range(9, 17):
        logs.advance(step)
        time.sleep(0.05)
"""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this platform has no terminals of that kind")
def test_the_bar_follows_a_terminal_that_is_resized(tmp_path: Path) -> None:
    import termios  # which Windows lacks

    ours, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {
        "TERM": "xterm"
    }
    with subprocess.Popen(
        [sys.executable, "-c", RESIZED, str(tmp_path)], stdin=subprocess.PIPE, stdout=terminal, env=environment
    ) as process:
        before = read_until(ours, "step 8/2200")
        termios.tcsetwinsize(terminal, (24, 40))
        process.communicate(b"\n")
    os.close(terminal)
    after = read_until(ours, "")
    assert process.returncode == 0
    assert "━" in before and widest(before) <= 100
    assert "step 16/2200" in after and 30 < widest(after) <= 40


def read_until(descriptor: int, wanted: str) -> str:
    """What a terminal shows, up to some text or its end."""
    text = ""
    while not wanted or wanted not in text:
        try:
            text += os.read(descriptor, 1 << 16).decode()
        except OSError:  # Linux's way of telling that the other side is closed
            break
    return text


def widest(text: str) -> int:
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    return max(map(len, re.split(r"[\r\n]+", plain)))
