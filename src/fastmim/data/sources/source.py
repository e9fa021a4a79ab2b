"""The protocol of image sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastmim.data.greys import PLAIN, Decoding
from fastmim.errors import RequestError


class NoSuchSplit(RequestError):  # noqa: N818 - callers catch it and try the next split
    """The dataset exists but has no split of that name."""


class Source(Protocol):
    """Images by index. Small when pickled, safe to fork, the same in every process."""

    @property
    def origin(self) -> str:
        """The `--data` that the user wrote, for messages."""

    @property
    def root(self) -> str | None:
        """The folder that keys start from, if they are paths; None if they are positions."""

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, positions in `classes`; None if the source has none."""

    @property
    def classes(self) -> list[str] | None:
        """The classes' names; None if the source has none."""

    @property
    def decoding(self) -> Decoding:
        """How its images are decoded, all in the same way."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know of it, as lines of a plan: the range of its greys, files that were passed over."""

    def __len__(self) -> int:
        """The number of images."""

    def read(self, index: int) -> bytes | np.ndarray:
        """An encoded file, or uint8 (H, W), (H, W, 1) or (H, W, 3).

        Raises:
            BadImage, OSError: It cannot be read (`decode.UNREADABLE` has what callers catch).
        """

    def name(self, index: int) -> str:
        """The image's name in messages: its path, or for example "samples/coffee.png#3"."""

    def key(self, index: int) -> bytes:
        """What identifies the image wherever the source lies: its path within `root`, or else its position.

        A pack and a subset give the keys of the source that they were made from.
        """

    def position(self, index: int) -> int:
        """The image's position in the source that a pack or a subset was made from; `index` in any other source."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ByPosition:
    """The rest of `Source` for images without paths: pixels in memory, rows of a table, members of tars."""

    origin: str
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    decoding: Decoding = PLAIN
    remarks: tuple[str, ...] = ()
    root: None = None

    def name(self, index: int) -> str:
        return f"{self.origin}#{index}"

    def key(self, index: int) -> bytes:
        return b"%d" % index

    def position(self, index: int) -> int:
        return index
