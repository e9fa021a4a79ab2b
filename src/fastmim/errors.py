"""Errors that reach the user as one line, and the exit statuses of commands."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 75
"""Done; failed; the request is wrong; stopped by a signal, with everything saved: run the same command to resume."""


class RequestError(ValueError):
    """The request is wrong: one line with the value, what was expected, the remedy. Exit status REFUSED.

    Example:
        >>> try:
        ...     fastmim.pretrain(mask_ratio=2)
        ... except fastmim.RequestError as error:
        ...     print(error)
        mask_ratio is 2.0; expected at least 0 and less than 1, such as 0.75
    """


class RunError(RuntimeError):
    """The run failed for a reason that the user can act on, in one line. Exit status FAILED.

    Example:
        >>> try:
        ...     fastmim.pretrain(data="photos/", backbone="vit_tiny_patch16_224", out="runs/photos")
        ... except fastmim.RunError as error:
        ...     print(error)
    """


class ElsewhereError(RunError):
    """Another process of the run failed, and says why itself."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names of a list and the number of the others, as in "a, b and 3 more"."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


_MOST_SHOWN = 300
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlevel = 3


def shown(value: Any) -> str:
    """A value of any size as a message shows it: its repr on one line, of which long parts are left out."""
    try:
        text = " ".join(_REPR.repr(value).split())
        return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return "a number of thousands of digits"
