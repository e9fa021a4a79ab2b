"""Graceful stop on a signal."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopSignals:
    """Record the first SIGTERM, SIGUSR1 or SIGINT inside the block as `requested`; a second one kills the process."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignals:
        self._before = (
            {number: signal.signal(number, self._on_signal) for number in self.SIGNALS} if _in_main_thread() else {}
        )
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error: object) -> None:
        self._restore()


def _in_main_thread() -> bool:
    # Python installs signal handlers only there; in a server's thread, signals do not stop a run.
    return threading.current_thread() is threading.main_thread()
