"""Errors that users see, in one line."""

from __future__ import annotations


class RequestError(ValueError):
    """The request is wrong: one line with the value, what was expected, the remedy. Exit status 2."""


class RunError(RuntimeError):
    """The run failed for a reason that the user can act on, in one line. Exit status 1."""
