"""The `fastmim` command: one module for each group of commands, all added to `app` when they are imported."""

from fastmim.cli import data, measurement, pretraining, transfer, weights
from fastmim.cli.app import app, main

__all__ = ["app", "data", "main", "measurement", "pretraining", "transfer", "weights"]
