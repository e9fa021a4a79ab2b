"""The `fastmim` command."""

from fastmim.cli.commands import app, main

__all__ = ["app", "main"]
