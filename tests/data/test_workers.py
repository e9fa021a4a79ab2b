"""Data workers ignore stop requests that are not from their parent, and are never left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch.utils.data._utils as data_utils

from fastmim.data.loader import load
from fastmim.data.sources import open_source
from fastmim.data.sources.source import ByPosition
from fastmim.errors import RunError
from fastmim.system.signals import Stopped, StopSignals

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="this platform cannot see a sender")

OPTIONS = {"size": 16, "seed": 0, "global_batch": 8, "first_step": 0, "last_step": 500}


class Plain(ByPosition):
    """Twenty grey images."""

    def __init__(self) -> None:
        super().__init__(origin="plain")

    def __len__(self) -> int:
        return 20

    def read(self, index: int) -> np.ndarray:
        return np.zeros((20, 20), np.uint8)


class Stuck(Plain):
    """Reading never ends, as on a network disk that has gone."""

    def read(self, index: int) -> np.ndarray:
        time.sleep(600)
        raise AssertionError


class NoSharedMemory(Plain):
    """Batches find no room, as in a full /dev/shm."""

    def read(self, index: int) -> np.ndarray:
        import resource  # which Windows lacks

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        return super().read(index)


class Numbered(Plain):
    """Each image is as bright as its number."""

    def read(self, index: int) -> np.ndarray:
        return np.full((20, 20), index, np.uint8)


class Slow(Numbered):
    """An image takes 0.02 s."""

    def read(self, index: int) -> np.ndarray:
        time.sleep(0.02)
        return super().read(index)


class Deadly(Plain):
    """The system kills the worker, as when memory runs out."""

    def read(self, index: int) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_until_gone(pids: list[int], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while any(map(alive, pids)):
        assert time.monotonic() < end, "processes were left behind"
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signals_from_elsewhere_are_not_obeyed(name: str) -> None:
    batches = load(open_source("samples"), num_workers=2, **OPTIONS)
    pids = workers()
    assert len(pids) == 2
    subprocess.run(["kill", f"-{name.removeprefix('SIG')}", *map(str, pids)], check=True)  # at start
    next(batches)
    subprocess.run(["kill", f"-{name.removeprefix('SIG')}", *map(str, pids)], check=True)  # and while working
    time.sleep(0.2)
    for _ in range(10):
        next(batches)
    assert all(map(alive, pids))
    del batches
    wait_until_gone(pids)


def test_this_process_still_receives_its_signals() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    batches = load(open_source("samples"), num_workers=1, **OPTIONS)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    del batches


def test_closing_an_iterator_ends_its_workers() -> None:
    batches = load(open_source("samples"), num_workers=2, **OPTIONS)
    next(batches)
    pids = workers()
    batches.close()
    wait_until_gone(pids, 0)


def test_finishing_an_iterator_ends_its_workers() -> None:
    batches = load(Plain(), num_workers=1, **OPTIONS | {"last_step": 2})
    pids = workers()
    assert len(list(batches)) == 2
    wait_until_gone(pids)


def test_a_stuck_worker_obeys_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    batches = load(Stuck(), num_workers=1, **OPTIONS)
    pids = workers()
    time.sleep(0.3)
    del batches
    wait_until_gone(pids)


def test_a_stop_request_is_obeyed_while_no_data_comes() -> None:
    batches = load(Stuck(), num_workers=2, **OPTIONS)
    pids = workers()
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped while no data came: run the same command to resume") as caught:
            next(batches)
    assert caught.value.holding is not None
    caught.value.holding = None
    wait_until_gone(pids)


def test_slow_data_comes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slower than the loader's look at signals."""
    monkeypatch.setattr("fastmim.data.loader._POLL_SECONDS", 0.01)
    slow, fast = load(Slow(), num_workers=2, **OPTIONS), load(Numbered(), num_workers=0, **OPTIONS)
    for _ in range(3):
        assert next(slow)["images"].equal(next(fast)["images"])
    slow.close()


def test_a_worker_that_dies_is_named_in_one_line() -> None:
    message = r"a data worker died \(DataLoader worker .*\): most often memory or shared memory ran out; lower --num"
    with pytest.raises(RunError, match=message) as caught:
        next(load(Deadly(), num_workers=1, **OPTIONS))
    assert "\n" not in str(caught.value)


def test_an_error_ends_the_workers_although_its_traceback_lives() -> None:
    class Unreadable(Plain):
        def read(self, index: int) -> np.ndarray:
            raise OSError("gone")

    batches = load(Unreadable(), num_workers=2, **OPTIONS)
    pids = workers()
    with pytest.raises(RunError) as caught:
        next(batches)
    wait_until_gone(pids)
    assert caught.tb is not None


TRAINER = """
import multiprocessing, signal, sys, time
from fastmim.data.loader import load
from fastmim.data.sources import open_source
from test_workers import OPTIONS, Stuck

def main():
    batches = load({source}, num_workers=1, start_method={method!r}, **OPTIONS)
    time.sleep(0.3)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    {then}

if __name__ == "__main__":
    main()
"""


def run_trainer(tmp_path: Path, *, source: str, method: str, then: str) -> subprocess.Popen[str]:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER.format(source=source, method=method, then=then))
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )


@pytest.mark.parametrize(
    ("source", "method"),
    [
        ("Stuck()", "fork"),
        pytest.param("open_source('samples')", "fork", marks=pytest.mark.slow),
        pytest.param("Stuck()", "spawn", marks=pytest.mark.slow),
        pytest.param("Stuck()", "forkserver", marks=pytest.mark.slow),
    ],
)
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, source: str, method: str) -> None:
    with run_trainer(tmp_path, source=source, method=method, then="time.sleep(600)") as trainer:
        assert trainer.stdout is not None
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(pids) == 1
        trainer.kill()
        wait_until_gone(pids)


@pytest.mark.parametrize("source", ["Stuck()", pytest.param("open_source('samples')", marks=pytest.mark.slow)])
def test_a_program_that_ends_leaves_no_process_and_prints_nothing(tmp_path: Path, source: str) -> None:
    """The iterator is alive at the end of `main`, and held by a global afterwards."""
    then = "globals().update(kept=batches)"
    with run_trainer(tmp_path, source=source, method="fork", then=then) as trainer:
        output, errors = trainer.communicate(timeout=120)
    assert trainer.returncode == 0
    assert errors == ""
    wait_until_gone([int(pid) for pid in output.split()])


def test_a_batch_that_finds_no_room_in_shared_memory_is_told() -> None:
    with pytest.raises(RunError, match="a data worker died .*shared memory ran out.*--shm-size"):
        next(iter(load(NoSharedMemory(), num_workers=1, **OPTIONS)))  # type: ignore[arg-type]


ORPHANED = """
import multiprocessing, os, signal, time
from fastmim.data.workers import obey_parent_only

def work():
    obey_parent_only(0)
    parent = multiprocessing.parent_process()
    while parent.is_alive():
        time.sleep(0.001)
    raise EOFError("half a request, because the trainer was killed")

multiprocessing.get_context("fork").Process(target=work).start()
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_of_a_killed_trainer_says_nothing() -> None:
    ended = subprocess.run([sys.executable, "-c", ORPHANED], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL and ended.stderr == ""
