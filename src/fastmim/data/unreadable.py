"""Images that cannot be used: the error, what else makes an image unreadable, and the reason in one line."""

from __future__ import annotations


class BadImage(ValueError):  # noqa: N818 - describes an image, not the program
    """One image cannot be used; the message is the reason in one line."""


UNREADABLE = (OSError, ValueError, MemoryError, RuntimeError)
"""Whatever reading and decoding one image may raise; it makes that image unreadable and does not end the run."""


def reason(error: Exception) -> str:
    """Why an image is skipped, in one line."""
    if isinstance(error, BadImage):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}{f': {one_line(error)}' if str(error) else ''}"


def one_line(error: Exception) -> str:
    """An exception's message without line breaks, or its type if it has no message."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
