"""The next readable image in place of an unreadable one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastmim.data.sources.source import Source
from fastmim.data.unreadable import UNREADABLE, reason

_MAX_TRIES = 100

Read = TypeVar("Read")


class Replacement:
    """Finds readable images for a batch, and remembers the unreadable ones.

    A replacement has the key of the image that it replaces, so the keys of a batch are known before it is read.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._bad: dict[int, str] = {}

    def first(self, index: int, read: Callable[[int], Read]) -> tuple[int, Read] | None:
        """The first image at or after `index` that can be read, and what was read; None after 100 tries.

        Args:
            index: The image wanted; after the last comes the first.
            read: Reads an image by its index; what it raises (`UNREADABLE`) makes that image unreadable.
        """
        for _ in range(min(_MAX_TRIES, len(self._source))):
            if index not in self._bad:
                try:
                    return index, read(index)
                except UNREADABLE as error:
                    self._bad[index] = reason(error)
            index = (index + 1) % len(self._source)
        return None

    def bad(self) -> list[tuple[str, str]]:
        """(name, reason) of each unreadable image."""
        return [(self._source.name(index), why) for index, why in self._bad.items()]
