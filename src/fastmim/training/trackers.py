"""Experiment trackers: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import functools
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fastmim.errors import RequestError, first_line


class Tracker(Protocol):
    """A destination for metrics."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step."""

    def close(self) -> None:
        """Flush and close."""


class TensorBoard:
    """Event files in `<out>/tensorboard`."""

    def __init__(self, out: Path, settings: dict[str, Any], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = out / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        # Unbuffered, so that closing the file never retries what a full disk refused. torch's SummaryWriter would
        # write in a thread, which prints a traceback then.
        self._file = (folder / name).open("wb", buffering=0)
        self._records = RecordWriter(self)
        self._record(file_version="brain.Event:2")
        if step:  # hide what an interrupted run logged after its last checkpoint
            self._record(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, content: bytes) -> None:
        """Write all of a record, for `RecordWriter`."""
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            self._file.close()
            raise

    def _record(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def log(self, step: int, metrics: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._record(step=step, summary=Summary(value=values))

    def close(self) -> None:
        self._file.close()


class WandB:
    """A Weights & Biases run; a resumed run continues it, by the id kept in the run directory."""

    def __init__(self, out: Path, settings: dict[str, Any], step: int) -> None:
        import wandb

        name = out.resolve().name
        identity = out / "wandb_id.txt"
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        self._run = wandb.init(
            project="fastmim",
            name=name,
            id=identity.read_text(encoding="utf-8"),
            resume="allow",
            dir=out,
            config=settings,
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run; a resumed run continues it. It is kept in `<out>/mlflow.db` unless MLFLOW_TRACKING_URI is set."""

    def __init__(self, out: Path, settings: dict[str, Any], step: int) -> None:
        import mlflow

        self._mlflow = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{out.resolve() / 'mlflow.db'}")
        identity = out / "mlflow_id.txt"
        if identity.exists():
            mlflow.start_run(run_id=identity.read_text(encoding="utf-8"))
        else:
            run_id = mlflow.start_run(run_name=out.resolve().name).info.run_id
            identity.write_text(run_id, encoding="utf-8")
            mlflow.log_params(settings)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mlflow.log_metrics(metrics, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[Path, dict[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


class Dispensable:
    """A tracker that a run can do without: its first failure of any kind is a warning, and the last of its work."""

    def __init__(self, name: str, open_: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._attempt(lambda: setattr(self, "_tracker", open_()))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if tracker := self._tracker:
            self._attempt(lambda: tracker.log(step, metrics))

    def close(self) -> None:
        if tracker := self._tracker:
            self._attempt(tracker.close)
            self._tracker = None

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self._tracker = None
            said = first_line(error) or type(error).__name__
            warnings.warn(f"{self._name} failed ({said}): the run goes on without it", stacklevel=3)


def check_installed(names: Iterable[str]) -> None:
    """Raise RequestError for a tracker that is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise RequestError(f"trackers names {name}, which is not installed; run: pip install 'fastmim[{name}]'")


def open_trackers(
    names: tuple[str, ...], *, auto: bool, out: Path, settings: dict[str, Any], step: int
) -> list[Tracker]:
    """Open the named trackers; with `auto`, TensorBoard if it is installed. One that fails, now or later, is left out.

    Raises:
        RequestError: a tracker that was asked for by name is not installed.
    """
    check_installed(names)
    if auto and find_spec("tensorboard"):
        names = ("tensorboard",)
    return [Dispensable(name, functools.partial(TRACKERS[name], out, settings, step)) for name in names]
