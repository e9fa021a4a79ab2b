"""Requests to stop: SIGTERM, SIGUSR1, SIGINT, SIGHUP (the terminal has gone), and SIGBREAK on Windows."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from fastmim.system.output import speaks

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP", "SIGBREAK")
SIGNALS: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
_AGAIN_SECONDS, _POSTPONED_SECONDS = 0.05, 20.0
PATIENCE_SECONDS = 2.0
"""Schedulers and shells send several signals for one request: those that follow so soon change nothing."""


class Stopped(BaseException):
    """A signal asked to stop where the code cannot go on to a point of its own choosing.

    It is not an `Exception`: whatever handles failures must let it pass.

    Args:
        message: What the user is told if nothing handles it.
        holding: What ends only when this has been handled, because that may take long: the work is to be saved first.
    """

    def __init__(self, message: str, *, holding: object = None) -> None:
        super().__init__(message)
        self.holding = holding


@dataclass
class _Request:
    name: str = ""
    since: float = 0.0
    raised: str = ""
    postponed: bool = False


class StopSignals:
    """Record a request to stop while the block runs, so that the code can save and end.

    A signal that comes more than two seconds after the first one means "now", and has the effect that it has outside
    the block. Blocks nest: an inner one knows of a request that came before it began.

    Args:
        whole_process: The block is all that this process does. Then nothing is to be saved outside inner blocks: the
            first signal raises `Stopped` there, and further ones have no effect between the ends of block and process.
        ends_process: The process ends with the block in any case, so no signal has an effect between them.
        elsewhere: Tells whether another process of the run was asked; called only while this one waits for data.
        answer: What the user is told as soon as the first signal comes: a step may take minutes.
    """

    _current: StopSignals | None = None

    def __init__(
        self,
        *,
        whole_process: bool = False,
        ends_process: bool = False,
        elsewhere: Callable[[], bool] | None = None,
        answer: str = "",
    ) -> None:
        self._whole_process, self._ends_process = whole_process, ends_process
        self._elsewhere, self._answer = elsewhere, answer
        self._request = _Request()
        self._before: dict[signal.Signals, Any] = {}
        self._outer: StopSignals | None = None
        self._had_inner = False

    def requested_elsewhere(self) -> bool:
        """Whether another process of the run has been asked to stop; takes a message to find out."""
        return self._elsewhere is not None and self._elsewhere()

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return bool(self._request.name)

    def __enter__(self) -> StopSignals:
        # Python installs signal handlers only there; in a server's thread, signals do not stop a run.
        if threading.current_thread() is threading.main_thread():
            self._outer, StopSignals._current = StopSignals._current, self
            if self._outer:
                self._outer._had_inner = True
                self._request = self._outer._request
            for number in SIGNALS:
                if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores it
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self._request.name, self._request.since = signal.Signals(number).name, time.monotonic()
            if self._whole_process:
                saved = (
                    "; all that was done is saved: run the same command without --overwrite to resume"
                    if self._had_inner
                    else " with nothing to save yet: run the same command again"
                )
                self._request.raised = f"stopped by {self._request.name}{saved}"
                self._raise(number, frame)
            self._say_so()
        elif self._request.postponed:
            self._request.postponed = False
            if self._whole_process:  # an inner block looks at the request itself
                self._raise(number, frame)
        elif time.monotonic() > self._request.since + PATIENCE_SECONDS:
            self._restore(signal.Signals(number))
            signal.raise_signal(number)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        # Torch calls Python from C++ that an exception would abort: when it is imported, for example.
        if not _within_torch(frame) or time.monotonic() > self._request.since + _POSTPONED_SECONDS:
            # Signals that came meanwhile, while C++ ran, are answered only now, and have waited for no one's patience.
            self._request.since = time.monotonic()
            raise Stopped(self._request.raised)
        self._request.postponed = True
        again = threading.Timer(_AGAIN_SECONDS, interrupt, (number,))
        again.daemon = True
        again.start()

    def _say_so(self) -> None:
        if self._answer and speaks():
            # The signal may have come while this very stream was being written, which Python refuses to nest.
            with suppress(RuntimeError, OSError, ValueError, AttributeError):
                print(self._answer, file=sys.stderr, flush=True)

    def _restore(self, number: signal.Signals) -> None:
        # A whole process ends by the signal itself, where Python would print a traceback for SIGINT.
        before = None if self._whole_process else self._before.get(number)
        signal.signal(number, before or signal.SIG_DFL)

    def __exit__(self, *error: object) -> None:
        if self is not StopSignals._current:
            return
        StopSignals._current = self._outer
        # A signal must not change the exit status of a command that is over, not even when Python, while it tears down
        # its modules, has given back the default handlers: it leaves ignored signals as they are.
        ending = self._ends_process or (self._whole_process and self.requested)
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if ending else before or signal.SIG_DFL)


def _within_torch(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] == "torch":
            return True
        frame = frame.f_back
    return False


def interrupt(number: int) -> None:
    """Send a signal to this process's main thread, whatever it waits for."""
    if sys.platform == "win32":
        signal.raise_signal(number)  # Python runs the handler in the main thread, as soon as that runs Python code
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def stop_requested() -> bool:
    """Whether a signal has come in the `StopSignals` blocks that run now, to this process or another of the run."""
    current = StopSignals._current
    return current is not None and (current.requested or current.requested_elsewhere())


def raise_again() -> None:
    """Raise `Stopped` if a signal has raised it and some code, such as an extension's imports, has swallowed it."""
    if StopSignals._current is not None and StopSignals._current._request.raised:
        raise Stopped(StopSignals._current._request.raised)
