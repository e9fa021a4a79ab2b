"""Signals and data workers: a stop request reaches every process of a job, only the trainer acts on it.

torchrun, SLURM and a terminal send SIGTERM, SIGUSR1 or SIGINT to the workers too. A worker that obeyed
would take the run down before it has saved. So workers block these signals, and end when their parent
tells them to or is gone.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# macOS and Windows cannot wait for a signal and see its sender; there workers keep torch's own behaviour.
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1} if hasattr(signal, "sigtimedwait") else set()
_CHECK_SECONDS = 1.0


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start processes in here: they are born with the signals blocked. This one gets them afterwards."""
    if not _SIGNALS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only(worker_id: int) -> None:
    """DataLoader's `worker_init_fn`: only the parent, by a signal or by its end, ends this process."""
    # A spawned worker ends by finalising Python, which aborts it now and then: the thread that hands over batches
    # may be inside torch. Nothing is left to do by then.
    atexit.register(os._exit, 0)
    if _SIGNALS:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a fork server was not born in `signals_blocked`
        threading.Thread(target=_watch, name="obey-parent", daemon=True).start()


def _watch() -> None:
    # The parent of a fork server's child is the server, so what counts is who asked for the process.
    parent, forked_by = multiprocessing.parent_process(), os.getppid()
    while parent and parent.is_alive() and os.getppid() == forked_by:
        received = signal.sigtimedwait(_SIGNALS, _CHECK_SECONDS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)  # not sys.exit: the main thread may be deep in a decoder, and has nothing to clean up
