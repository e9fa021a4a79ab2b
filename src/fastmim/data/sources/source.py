"""The protocol of image sources."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Source(Protocol):
    """Images by index. Small when pickled, safe to fork, the same in every process."""

    @property
    def origin(self) -> str:
        """What the user wrote, for messages."""

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, positions in `classes`; None if the source has none."""

    @property
    def classes(self) -> list[str] | None:
        """The classes' names; None if the source has none."""

    def __len__(self) -> int:
        """How many images there are."""

    def read(self, index: int) -> bytes | np.ndarray:
        """An encoded file, or uint8 (H, W), (H, W, 1) or (H, W, 3).

        Raises:
            OSError, BadImage: It cannot be read.
        """

    def name(self, index: int) -> str:
        """What to call the image in messages: its path, or "samples/coffee.png#3"."""
