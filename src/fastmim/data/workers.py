"""Signals in data workers: a stop request reaches every process of a job, but only the trainer acts on it.

torchrun, SLURM and a terminal send SIGTERM, SIGUSR1, SIGINT or SIGHUP to the workers too. A worker that obeyed
would kill the run before it has saved. So workers block these signals, and exit when their parent tells
them to or is gone.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TextIO

from fastmim.system import signals

_SIGNALS = set(signals.SIGNALS)
_CHECK_SECONDS = 1.0
_LAST_WORDS_SECONDS = 0.1


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals for processes started inside; this process receives pending ones afterwards."""
    if sys.platform == "win32":  # it blocks none
        yield
    else:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only(worker_id: int) -> None:
    """Make a worker exit only when its parent signals it or is gone; DataLoader's `worker_init_fn`."""
    # A spawned worker exits by finalising Python, which sometimes aborts because the thread that hands over batches
    # is inside torch. Nothing is left to do at that point.
    atexit.register(os._exit, 0)
    # A batch that finds no room in shared memory would be lost, and waited for: the trainer tells of a dead worker.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
    sys.stderr = _UnlessOrphaned(sys.stderr)
    if hasattr(signal, "sigtimedwait") and sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a fork server was not started in `signals_blocked`
        threading.Thread(target=_watch, name="obey-parent", daemon=True).start()
        return
    # macOS and Windows cannot wait for a signal and see its sender. There, SIGTERM is taken for the parent's.
    for number in _SIGNALS - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


class _UnlessOrphaned:
    """Standard error of a worker, whose last words about a broken pipe would follow a parent that was killed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._parent = stream, multiprocessing.parent_process()

    def write(self, text: str) -> int:
        if self._parent is not None:
            self._parent.join(_LAST_WORDS_SECONDS)  # its connections close a moment before it is gone
            if not self._parent.is_alive():
                return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _end(error: Exception, batch: object) -> None:
    os._exit(1)


def dismiss(workers: Iterable[BaseProcess]) -> None:
    """Ask workers to exit now, even if they are in the middle of reading; this does not wait for them."""
    for worker in workers:
        worker.terminate()


def _watch() -> None:
    # A fork server's child has the server as its parent, so compare with the process that requested it.
    parent, forked_by = multiprocessing.parent_process(), os.getppid()
    while parent and parent.is_alive() and os.getppid() == forked_by:
        received = signal.sigtimedwait(_SIGNALS, _CHECK_SECONDS)  # type: ignore[attr-defined,unused-ignore]
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)  # not sys.exit: the main thread may be deep in a decoder, and has nothing to clean up
