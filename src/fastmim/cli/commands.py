"""All commands: importing their modules adds them to `app`."""

from fastmim.cli import cluster, data, measurement, pretraining, report, transfer, weights
from fastmim.cli.app import app, run

__all__ = ["app", "cluster", "data", "measurement", "pretraining", "report", "run", "transfer", "weights"]
