"""Requests to stop: one signal or several at once mean "save and end", a later one means "now"."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastmim.system import locking
from fastmim.system.signals import PATIENCE_SECONDS, SIGNALS, StopSignals, stop_requested

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this platform lacks some of the signals")

WORK = """
import os, signal, time
from fastmim.system import signals
from fastmim.system.signals import Stopped, StopSignals
signals.PATIENCE_SECONDS = {patience}
send = lambda name: os.kill(os.getpid(), signal.Signals[name])
with StopSignals(whole_process={whole}):
    with StopSignals() as stop:
        {work}
    print("saved", flush=True)
    time.sleep({shutdown})
"""


def run(work: str, *, patience: float = 60.0, whole: bool = True, shutdown: float = 0.0) -> subprocess.CompletedProcess:
    script = WORK.format(work=work, patience=patience, whole=whole, shutdown=shutdown)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [
        ("SIGTERM", "SIGUSR1", True),
        ("SIGTERM", "SIGTERM", False),
        ("SIGINT", "SIGINT", True),
        ("SIGHUP", "SIGTERM", True),
    ],
)
def test_signals_that_follow_at_once_are_one_request(first: str, second: str, whole: bool) -> None:
    done = run(f"send({first!r}); send({second!r}); assert stop.requested", whole=whole)
    assert (done.returncode, done.stdout, done.stderr) == (0, "saved\n", "")


def test_two_interrupts_do_not_disturb_the_end_of_the_process() -> None:
    """Neither among its last calls nor when Python has taken down its own handlers."""
    work = "import atexit, sys; send('SIGINT'); atexit.register(send, 'SIGINT'); atexit.register(send, 'SIGTERM'); "
    work += (
        "sys.modules['late'] = type('Late', (), {'__del__': lambda self, end=os.kill, pid=os.getpid(): end(pid, 15)})()"
    )
    done = run(work)
    assert (done.returncode, done.stdout, done.stderr) == (0, "saved\n", "")


def test_a_repeated_signal_does_not_disturb_the_teardown_of_modules() -> None:
    late = "late = type('Late', (), {'__del__': lambda self, kill=os.kill, pid=os.getpid(): kill(pid, 15)})()"
    done = run(f"send('SIGTERM'); {late}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "saved\n", "")


@pytest.mark.parametrize(
    ("name", "whole", "status"),
    [("SIGTERM", True, -15), ("SIGINT", True, -2), ("SIGTERM", False, -15), ("SIGHUP", False, -1)],
)
def test_a_later_signal_ends_the_process(name: str, whole: bool, status: int) -> None:
    done = run(f"send({name!r}); time.sleep(0.05); send({name!r})", patience=0.01, whole=whole)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_a_later_interrupt_of_a_program_of_ones_own_is_python_s() -> None:
    done = run("send('SIGINT'); time.sleep(0.05); send('SIGINT')", patience=0.01, whole=False)
    assert "KeyboardInterrupt" in done.stderr


def test_a_process_that_ignores_its_terminal_s_end_is_not_stopped_by_it() -> None:
    command = "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); exec(os.environ['WORK'])"
    work = WORK.format(work="send('SIGHUP'); assert not stop.requested", patience=1, whole=True, shutdown=0)
    done = subprocess.run([sys.executable, "-c", command], env=os.environ | {"WORK": work}, timeout=30)
    assert done.returncode == 0


def test_blocks_nest_and_leave_handlers_as_they_were() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    assert not stop_requested()
    with StopSignals() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with StopSignals() as inner:
            assert inner.requested and outer.requested and stop_requested()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with StopSignals() as stop:
        assert not stop.requested and not stop_requested()
    assert PATIENCE_SECONDS == 2.0


def test_a_thread_is_not_stopped() -> None:
    seen: list[bool] = []

    def work() -> None:
        with StopSignals() as stop:
            seen.append(stop.requested)

    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [False]


START = """
import os, signal, sys
from fastmim import cli

class Signal:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.Signals[{name!r}])

sys.meta_path.insert(0, Signal())
cli.main(sys.argv[1:])
"""


SWALLOWED = START.replace(
    "            os.kill(os.getpid(), signal.Signals[{name!r}])\n",
    "            try:\n                os.kill(os.getpid(), signal.Signals[{name!r}])\n"
    "            except BaseException:\n                raise ImportError('no torch') from None\n",
)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_a_command_that_is_stopped_while_it_starts_exits_75(name: str) -> None:
    script = START.format(module="torch", name=name)
    done = subprocess.run([sys.executable, "-c", script, "pretrain"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 75
    assert done.stderr == f"fastmim: stopped by {name} with nothing to save yet: run the same command again\n"


def test_an_import_that_fails_because_of_a_signal_is_no_failure() -> None:
    script = SWALLOWED.format(module="torch", name="SIGTERM")
    done = subprocess.run([sys.executable, "-c", script, "pretrain"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 75
    assert done.stderr == "fastmim: stopped by SIGTERM with nothing to save yet: run the same command again\n"


def test_a_signal_does_not_change_the_status_of_a_command_that_is_over() -> None:
    script = "import atexit, os, sys; from fastmim import cli; atexit.register(os.kill, os.getpid(), 15); cli.main()"
    done = subprocess.run([sys.executable, "-c", script, "recipes"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_that_is_stopped_while_it_waits_for_the_lock_exits_75(tmp_path: Path) -> None:
    words = [sys.executable, "-u", "-m", "fastmim", "pack", "samples", str(tmp_path / "out")]
    with locking.hold(tmp_path / "out.partial", print):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout and "in use by another process" in process.stdout.readline()
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    assert errors == "fastmim: stopped by SIGTERM with nothing to save yet: run the same command again\n"


def test_a_command_that_is_stopped_after_its_work_exits_75(tmp_path: Path) -> None:
    """As while the finished weights are written: the last checkpoint is there."""
    script = (
        "import os, signal, sys; from fastmim import cli; from fastmim.data.packs.writer import PackWriter\n"
        "PackWriter.finish = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "cli.main(sys.argv[1:])"
    )
    words = [sys.executable, "-c", script, "pack", "samples", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75
    said = "fastmim: stopped by SIGTERM; all that was done is saved: run the same command without --overwrite to resume"
    assert done.stderr == f"{said}\n"


@pytest.mark.parametrize(("rank", "said"), [("0", "wait a little\n"), ("1", "")])
def test_the_first_signal_is_answered_at_once(rank: str, said: str) -> None:
    work = "send('SIGINT'); print('asked', file=sys.stderr); send('SIGINT')"
    script = WORK.format(work=work, patience=60.0, whole=True, shutdown=0.0)
    script = script.replace("StopSignals()", "StopSignals(answer='wait a little')")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}"],
        capture_output=True, text=True, timeout=30, env=os.environ | {"RANK": rank},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "saved\n", f"{said}asked\n")


WITHIN_TORCH = """
import os, signal, time, types
from fastmim.system.signals import Stopped, StopSignals
torch = types.ModuleType("torch.library")
exec("def register(send, wait): send(); wait(); print('registered', flush=True)", torch.__dict__)
try:
    with StopSignals(whole_process=True):
        torch.register(lambda: os.kill(os.getpid(), signal.SIGINT), lambda: time.sleep(0.3))
        time.sleep(60)
except Stopped as stopped:
    print(stopped)
"""


def test_a_signal_is_not_raised_through_torch_whose_callers_it_would_abort() -> None:
    done = subprocess.run([sys.executable, "-c", WITHIN_TORCH], capture_output=True, text=True, timeout=50)
    assert done.stdout == "registered\nstopped by SIGINT with nothing to save yet: run the same command again\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_signals_that_wait_for_torch_s_long_calls_are_one_request() -> None:
    """Python runs its handlers only when C++ has returned, which may take longer than anyone's patience."""
    script = WITHIN_TORCH.replace("with Stop", "signals.PATIENCE_SECONDS = 0.1\n    with Stop")
    script = script.replace(
        "from fastmim.system.signals", "from fastmim.system import signals\nfrom fastmim.system.signals", 1
    )
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))"
    arrive = f"({blocked}, signal.raise_signal(signal.SIGTERM), time.sleep(0.3))"
    script = script.replace("lambda: time.sleep(0.3))", f"lambda: {arrive})")
    script = script.replace("time.sleep(60)", "signal.pthread_sigmask(signal.SIG_SETMASK, ()); time.sleep(60)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.stdout == "registered\nstopped by SIGINT with nothing to save yet: run the same command again\n"
    assert (done.returncode, done.stderr) == (0, "")
