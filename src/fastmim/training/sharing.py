"""A pass over images that several processes make together: each reads every n-th batch, the main one gets them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

from fastmim.system.signals import Stopped, StopSignals
from fastmim.training.world import World

T = TypeVar("T")


@dataclass(frozen=True)
class Share(Sequence[int]):
    """The positions of the images in this process's batches: with its first batch it begins `rank` batches on.

    They are computed where they are needed: there may be 10^9.
    """

    num_images: int
    """Of the whole pass."""
    batch_size: int
    world: World
    first: int = 0
    """Position of the first image."""

    def __len__(self) -> int:
        rounds, rest = divmod(self.num_images - self.first, self.batch_size * self.world.size)
        return rounds * self.batch_size + min(max(rest - self.world.rank * self.batch_size, 0), self.batch_size)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> list[int]: ...

    def __getitem__(self, place: int | slice) -> int | list[int]:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        number, within = divmod(range(len(self))[place], self.batch_size)
        return self.first + (number * self.world.size + self.world.rank) * self.batch_size + within


def in_order(batches: Iterator[T], num_images: int, batch_size: int, world: World) -> Iterator[list[T]]:
    """Yield everyone's next batch, by rank, in the main process, and as many empty lists in the others.

    Args:
        batches: Of the images of `Share`.
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
