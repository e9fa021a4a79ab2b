"""All commands: importing their modules adds them to `app`."""

from fastmim.cli import data, measurement, pretraining, transfer, weights
from fastmim.cli.app import app, run

__all__ = ["app", "data", "measurement", "pretraining", "run", "transfer", "weights"]
