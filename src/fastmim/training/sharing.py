"""A pass over images that several processes make together: each reads every n-th batch, the main one gets them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from fastmim.system.signals import Stopped, StopSignals
from fastmim.training.world import World

T = TypeVar("T")


def share(num_images: int, batch_size: int, world: World, *, first: int = 0) -> np.ndarray:
    """The positions of the images in this process's batches, int64: with its first batch it begins `rank` batches on.

    Args:
        num_images: Of the whole pass.
        batch_size: Images in a batch.
        world: The processes.
        first: Position of the first image.
    """
    positions = np.arange(first, num_images)
    return positions[(positions - first) // batch_size % world.size == world.rank]


def in_order(batches: Iterator[T], num_images: int, batch_size: int, world: World) -> Iterator[list[T]]:
    """Yield everyone's next batch, by rank, in the main process, and as many empty lists in the others.

    Args:
        batches: Of the images of `share`.
        num_images: Of all processes.
        batch_size: Images in a batch.
        world: The processes, each of which makes this call.

    Raises:
        ElsewhereError: another process could not read its batch.
        Stopped: a process was asked to stop while it waited for images.
    """
    for _ in range(-(-num_images // (batch_size * world.size))):
        with world.together():
            batch = next(batches, None)
        yield [each for each in world.collect(batch) if each is not None]


def follow(rounds: Iterable[object], world: World) -> None:
    """Make the rounds of a pass in a process that does not write, until any process is asked to stop."""
    with StopSignals(elsewhere=world.asked_to_stop) as stop:
        try:
            for _ in rounds:
                if world.agree(stop.requested):
                    return
        except Stopped:  # the main process saves
            return
