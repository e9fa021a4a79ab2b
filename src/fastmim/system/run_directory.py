"""The run directory: the files of a training run, by what they hold."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from fastmim import config as configs
from fastmim.errors import RequestError
from fastmim.system import files

Config = TypeVar("Config", bound=configs.Settings)


class RunDirectory:
    """The files of a run, by what they hold."""

    FILES: ClassVar[tuple[str, ...]] = (
        "config.yaml",
        "metrics.jsonl",
        "starts.jsonl",
        "weights.safetensors",
        "weights_best.safetensors",
        "weights_before.safetensors",
        "adaptation.json",
        "evaluation.json",
        "report.html",
        "blocks.json",
        "bad_images.txt",
        "nonfinite_batch.safetensors",
        "wandb_id.txt",
        "mlflow_id.txt",
        "checkpoints",
        "samples",
        "tensorboard",
        "wandb",
        "mlflow.db",
    )
    """Everything that runs write. `--overwrite` removes these and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"  # a line for each log step
        self.starts = path / "starts.jsonl"  # a line for each start: when, at which step, on which machine
        self.checkpoints = path / "checkpoints"
        self.weights = path / "weights.safetensors"  # once the run has finished
        self.best_weights = path / "weights_best.safetensors"  # of the best validation so far
        self.weights_before = path / "weights_before.safetensors"  # of an adaptation: those before its first step
        self.adaptation = path / "adaptation.json"  # its scores before and after
        self.evaluation = path / "evaluation.json"  # the scores of the last validation
        self.report = path / "report.html"  # see fastmim.reporting
        self.blocks = path / "blocks.json"  # numbers of each block, as of the last pictures
        self.samples = path / "samples"  # pictures drawn during training
        self.bad_images = path / "bad_images.txt"
        self.nonfinite_batch = path / "nonfinite_batch.safetensors"  # the last batch, if the loss was not finite

    def picture(self, name: str) -> Path:
        """The path of a picture in `samples/`, whose folder is created."""
        self.samples.mkdir(exist_ok=True)
        return self.samples / name

    def read_config(self, cls: type[Config]) -> Config:
        """Read the run's config.

        Raises:
            RequestError: the directory holds no run.
        """
        if not files.exists(self.config):
            raise RequestError(
                f"run is {self.path}; expected a run directory with a config.yaml, as `fastmim pretrain` makes"
            )
        return configs.build(cls, self.read_settings())

    def read_settings(self) -> dict[str, Any]:
        """Read config.yaml.

        Raises:
            RequestError: as `config.read`, or it is not a file: a pipe would never end.
        """
        if not self.config.is_file():
            raise RequestError(f"config is {self.config}, which is not a file; expected the config of a run: remove it")
        return configs.read(self.config)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the lines of metrics.jsonl in order; no lines if there is no such file.

        A last line that a kill truncated is left out, as is any other that is not a step's.
        """
        lines = []
        for text in files.read_regular(self.metrics).splitlines() if self.metrics.exists() else ():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and type(line.get("step")) is int:
                lines.append(line)
        return lines

    def add_start(self, facts: dict[str, Any]) -> None:
        """Append a line to starts.jsonl."""
        with self.starts.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts, default=str) + "\n")

    def drop_metrics_after(self, step: int) -> None:
        """Remove the lines of later steps, which a resumed run will write again."""
        if self.metrics.exists():
            kept = [line for line in self.read_metrics() if line["step"] <= step]
            files.write_text(self.metrics, "".join(f"{json.dumps(line)}\n" for line in kept))

    def prepare(self, config: configs.Settings, *, overwrite: bool, about: Mapping[str, Any] | None = None) -> None:
        """Create the directory, or empty it if `overwrite`, and write config.yaml.

        Args:
            about: What config.yaml tells beside the settings and versions, under keys of `config.ABOUT`.

        Raises:
            RequestError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in self.FILES:
                files.remove_leftovers(self.path / name)
                if overwrite:
                    files.remove(self.path / name)
            told = {"versions": versions(), **(about or {})}
            files.write_text(self.config, configs.to_yaml(config) + yaml.safe_dump(told, sort_keys=False))
        except OSError as error:
            raise RequestError(
                f"out is {self.path}: {error.strerror or error}; expected a directory that can be written"
            ) from None


def versions() -> dict[str, str]:
    """The versions that decide a run's numbers."""
    return {p: version(p) for p in ("fastmim", "torch", "timm")} | {"python": platform.python_version()}
