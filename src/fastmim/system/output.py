"""Standard output and error that may vanish while a command works, with its terminal or the reader of its pipe."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Any, TextIO

# Not open any more; closed; or None, as Python has it in a process that was started without (`>&-`).
_UNUSABLE = (OSError, ValueError, AttributeError)


def speaks() -> bool:
    """Whether this process speaks for the run: it is alone, or the first."""
    return os.environ.get("RANK", "0") == "0"


def escape_unknown(stream: TextIO) -> None:
    """Let a stream escape the characters that its encoding lacks, such as Windows' code pages, instead of failing."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # as Python has it for standard error


class Enduring:
    """A text stream that goes on as if nothing had happened when the stream beneath it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except _UNUSABLE:
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except _UNUSABLE:
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def discard(stream: TextIO) -> None:
    """Lead a stream's descriptor nowhere, so that nothing that is written later fails, not even as Python ends."""
    with suppress(*_UNUSABLE):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
