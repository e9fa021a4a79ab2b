"""Text of unknown origin, such as file names, made safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape what a terminal would obey or a file in UTF-8 could not hold; letters of any script stay as they are.

    Control characters (line breaks and tabs among them), invisible and bidirectional format characters, unusual
    spaces and bytes that are not UTF-8 become Python's escapes: "a\\x1b[2J" for a file that is named so. To print the
    result with rich, pass `markup=False`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
