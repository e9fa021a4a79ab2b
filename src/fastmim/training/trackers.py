"""Experiment trackers: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import os
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fastmim.errors import RequestError


class Tracker(Protocol):
    """A destination for metrics."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step."""

    def close(self) -> None:
        """Flush and close."""


class TensorBoard:
    """Event files in `<out>/tensorboard`."""

    def __init__(self, out: Path, settings: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what an interrupted run logged after its last checkpoint.
        self._writer = SummaryWriter(out / "tensorboard", purge_step=step or None)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run; a resumed run continues it, by the id kept in the run directory."""

    def __init__(self, out: Path, settings: dict[str, Any], step: int) -> None:
        import wandb

        name = out.resolve().name
        identity = out / "wandb_id.txt"
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:8])
        self._run = wandb.init(
            project="fastmim", name=name, id=identity.read_text(), resume="allow", dir=out, config=settings
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
            mlflow.start_run(run_id=identity.read_text())
        else:
            identity.write_text(mlflow.start_run(run_name=out.resolve().name).info.run_id)
            mlflow.log_params(settings)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mlflow.log_metrics(metrics, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def open_trackers(
    names: tuple[str, ...], *, auto: bool, out: Path, settings: dict[str, Any], step: int
) -> list[Tracker]:
    """Open the named trackers; with `auto`, TensorBoard if it is installed.

    Raises:
        RequestError: a tracker that was asked for by name is not installed.
    """
    if auto and find_spec("tensorboard"):
        names = ("tensorboard",)
    for name in names:
        if find_spec(name) is None:
            raise RequestError(f"trackers names {name}, which is not installed; run: pip install 'fastmim[{name}]'")
    return [TRACKERS[name](out, settings, step) for name in names]
