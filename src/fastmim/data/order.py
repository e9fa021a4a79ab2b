"""The order of images in an epoch, computed where it is needed: no list of all images, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from fastmim.data.sources import Source
from fastmim.errors import RequestError
from fastmim.randomness import permuted, step_seed

Shuffle = Literal["full", "blocks"]

BLOCK = 8192
"""Neighbours in the source that `blocks` reads together."""
_ORDER_STREAM = 3


def steps_per_epoch(source: Source, global_batch: int, *, remedy: str = "lower --batch-size to {} or less") -> int:
    """The number of whole batches in an epoch; the images left over differ by epoch.

    Args:
        remedy: What to do about too few images; {} stands for their number.

    Raises:
        RequestError: The source has fewer images than one batch.
    """
    if len(source) < global_batch:
        raise RequestError(
            f"{len(source):,} images in {source.origin} are fewer than one batch of {global_batch:,}: "
            f"{remedy.format(len(source))}"
        )
    return len(source) // global_batch


def shuffled(positions: np.ndarray, num_images: int, *, seed: int, shuffle: Shuffle = "full") -> np.ndarray:
    """The images at these positions of an epoch's order, a permutation of all images.

    Args:
        positions: int64, 0 to `num_images` - 1.
        num_images: Images in the source.
        seed: The epoch's.
        shuffle: "full" mixes all images; "blocks" keeps `BLOCK` neighbours together, mixing the blocks and each
            block's images. Then a file system reads one region at a time, and a batch sees one or two blocks: let
            neighbours in the source be no more alike than others.

    Returns:
        int64 of the same shape.
    """
    if shuffle == "full":
        return permuted(positions, num_images, seed)
    places = _places(num_images, seed)
    num_blocks = len(places)
    rest = num_images - (num_blocks - 1) * BLOCK  # images of the last block
    short = int(np.flatnonzero(places == num_blocks - 1)[0]) * BLOCK  # where it begins
    later = positions >= short + rest
    shifted = np.where(later, positions + (BLOCK - rest), positions)  # as if all blocks were whole
    blocks, inside = places[shifted // BLOCK], shifted % BLOCK
    found = np.empty_like(positions)
    for block in np.unique(blocks):
        here = blocks == block
        size = rest if block == num_blocks - 1 else BLOCK
        found[here] = block * BLOCK + permuted(inside[here], size, step_seed(seed, int(block)))
    return found


@lru_cache(maxsize=2)
def _places(num_images: int, seed: int) -> np.ndarray:
    """The blocks in the order of an epoch."""
    num_blocks = -(-num_images // BLOCK)
    return permuted(np.arange(num_blocks), num_blocks, seed)


@dataclass(frozen=True)
class StepSampler:
    """The indices of steps `first_step` to `last_step` - 1 for one process, one micro-batch at a time.

    Step n belongs to epoch n // (num_images // global_batch); the epoch's order is drawn from (seed, epoch). A global
    batch is split into `accumulation` equal parts, and each part among the processes. So a step sees the same images
    for any number of processes and any accumulation, a part the same for any number of processes, and both wherever
    the run was interrupted.

    Raises:
        ValueError: The global batch does not divide into world_size * accumulation equal parts, or is
            larger than num_images.
    """

    num_images: int
    global_batch: int
    seed: int
    first_step: int
    last_step: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1
    shuffle: Shuffle = "full"

    def __post_init__(self) -> None:
        if self.global_batch % (self.world_size * self.accumulation) or self.global_batch > self.num_images:
            raise ValueError(
                f"a batch of {self.global_batch} of {self.num_images} images does not divide into "
                f"{self.world_size} processes x {self.accumulation} micro-batches"
            )

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (epoch, indices), indices int64 (global_batch / world_size / accumulation,)."""
        num_steps = self.num_images // self.global_batch
        part = self.global_batch // self.accumulation
        share = part // self.world_size
        for step in range(self.first_step, self.last_step):
            epoch, number = divmod(step, num_steps)
            for start in range(number * self.global_batch, (number + 1) * self.global_batch, part):
                first = start + self.rank * share
                seed = step_seed(self.seed, epoch, _ORDER_STREAM)
                positions = np.arange(first, first + share)
                yield epoch, shuffled(positions, self.num_images, seed=seed, shuffle=self.shuffle)
