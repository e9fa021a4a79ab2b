"""Images with label images as batches: random crops for training, and whole images for tests."""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from fastmim.data import whole_images
from fastmim.data.decode import decode_whole
from fastmim.data.greys import PLAIN, Decoding
from fastmim.data.label_images import IGNORED, LabelledPixels
from fastmim.data.loader import read_ahead
from fastmim.data.order import Shuffle, StepSampler
from fastmim.data.replacement import Replacement
from fastmim.data.sources import Source
from fastmim.data.unreadable import BadImage
from fastmim.randomness import image_keys, uniform

_STREAM = 11
_NUM_TRIES = 10
_MAX_SHARE = 0.75  # of a crop's pixels with a class that one class may have, if another place can be found


def random_crop(
    pixels: Tensor, labels: np.ndarray, size: int, randoms: Sequence[float], *, fill: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Cut a square from an image and its labels, where no class covers more than three quarters of it.

    Of ten places the first such is taken, else the tenth. What lies beyond the image, to the right and below, is
    filled.

    Args:
        pixels: (3, H, W) uint8.
        labels: (H, W) int16.
        size: Side of the square in pixels.
        randoms: 20 numbers in [0, 1).
        fill: RGB beyond the image.

    Returns:
        (3, size, size) uint8 and (size, size) int16.
    """
    height, width = labels.shape
    top = left = 0
    for number in range(_NUM_TRIES):
        top = int(randoms[2 * number] * (max(0, height - size) + 1))
        left = int(randoms[2 * number + 1] * (max(0, width - size) + 1))
        inside = labels[top : top + size, left : left + size]
        counts = np.bincount(inside[inside != IGNORED].ravel())
        if np.count_nonzero(counts) > 1 and counts.max() < _MAX_SHARE * counts.sum():
            break
    crop = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, size, size)
    cut = labels[top : top + size, left : left + size]
    crop[:, : cut.shape[0], : cut.shape[1]] = pixels[:, top : top + size, left : left + size]
    numbers = torch.full((size, size), IGNORED, dtype=torch.int16)
    numbers[: cut.shape[0], : cut.shape[1]] = torch.from_numpy(np.ascontiguousarray(cut))
    return crop, numbers


def decode_resized(
    data: bytes | np.ndarray, short_side: int, decoding: Decoding = PLAIN
) -> tuple[Tensor, tuple[int, int]]:
    """Decode an image, resized so that its shorter side has this many pixels (antialiased bicubic).

    Returns:
        (3, h, w) uint8, and the (H, W) of the image before.

    Raises:
        BadImage: it cannot be decoded, or would be enlarged beyond the limit.
    """
    whole = decode_whole(data, decoding)
    height, width = whole.shape[:2]
    sides = resized(height, width, short_side)
    if sides[0] * sides[1] > decoding.max_pixels:
        raise BadImage(f"it has {width} x {height} pixels, and would be enlarged to {sides[1]} x {sides[0]}")
    pixels = torch.from_numpy(whole).permute(2, 0, 1)
    if sides != (height, width):
        pixels = F.interpolate(pixels[None], sides, mode="bicubic", antialias=True)[0]
    return pixels.expand(3, *sides), (height, width)


def resized(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The height and width of an image whose shorter side is brought to this many pixels."""
    scale = short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_labels(labels: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """(H, W) -> (h, w): the label at the middle of each new pixel."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64) for new, old in zip(sides, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns[None]]


@dataclass(frozen=True, eq=False)
class _Crops(Dataset[dict[str, Any]]):
    """The map-style dataset in the workers: a micro-batch's indices -> its tensors."""

    scenes: LabelledPixels
    size: int
    seed: int
    scale: tuple[float, float]
    fill: tuple[int, ...]

    def __getitems__(self, batch: tuple[int, np.ndarray]) -> dict[str, Any]:
        """Crop one micro-batch; see `loader.load` for keys and unreadable images."""
        epoch, indices = batch
        keys = image_keys(self.seed, epoch, torch.from_numpy(indices))
        randoms = uniform(keys, 2 * _NUM_TRIES + 1, stream=_STREAM).tolist()
        images = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        labels = torch.empty(len(indices), self.size, self.size, dtype=torch.int16)
        replacement = Replacement(self.scenes)
        for position, index in enumerate(indices.tolist()):
            found = replacement.first(index, functools.partial(self._crop, randoms[position]))
            if found is None:
                return {"unreadable": replacement.bad()}
            images[position], labels[position] = found[1]
        return {"images": images, "labels": labels, "keys": keys, "bad": replacement.bad()}

    def _crop(self, randoms: list[float], index: int) -> tuple[Tensor, Tensor]:
        low, high = self.scale
        short_side = max(1, round(self.size * (low + randoms[-1] * (high - low))))
        pixels, original = decode_resized(self.scenes.read(index), short_side, self.scenes.decoding)
        labels = _check_size(self.scenes.read_label(index), original)
        return random_crop(
            pixels, resize_labels(labels, (pixels.shape[1], pixels.shape[2])), self.size, randoms, fill=self.fill
        )


def load_crops(
    scenes: LabelledPixels,
    *,
    size: int,
    seed: int,
    global_batch: int,
    first_step: int,
    last_step: int,
    scale: tuple[float, float],
    fill: tuple[int, ...],
    accumulation: int = 1,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
    shuffle: Shuffle = "full",
) -> Generator[dict[str, Any]]:
    """Read the micro-batches of steps `first_step` to `last_step` - 1, in order; see `loader.load`.

    Args:
        scenes: The images.
        size: Side of the crops in pixels.
        seed: The run's seed.
        global_batch: Images per step over all processes.
        first_step: The first step to read, counted from 0 over the whole run.
        last_step: One past the last step.
        scale: Range of the resized image's shorter side, as a multiple of `size`.
        fill: RGB beyond the image.
        accumulation: Micro-batches per step.
        rank: Number of this process.
        world_size: Number of processes that share the global batch.
        num_workers: Number of worker processes; 0 reads in this process.
        pin_memory: Put batches into page-locked memory.
        shuffle: See `order.shuffled`.

    Yields:
        "images" uint8 (b, 3, size, size), "labels" int16 (b, size, size) with `IGNORED`, "keys" int64 (b,), and "bad",
        a list of (name, reason) of unusable images, each replaced by the next usable one.

    Raises:
        RunError: 100 images in a row were unusable, or a worker died.
    """
    order = StepSampler(len(scenes), global_batch, seed, first_step, last_step, accumulation, rank, world_size, shuffle)
    crops = _Crops(scenes, size, seed, scale, fill)
    return read_ahead(crops, order, scenes.origin, num_workers=num_workers, pin_memory=pin_memory)


def load_whole(
    source: Source, *, short_side: int, num_workers: int = 0, indices: Sequence[int] | None = None
) -> Generator[dict[str, Any]]:
    """Read whole images in order, one at a time; see `whole_images.load_whole`.

    Args:
        source: The images; with label images if it is a `LabelledPixels`.
        short_side: Pixels of the resized image's shorter side.
        num_workers: Number of worker processes; 0 reads in this process.
        indices: The images to read; all if None.

    Yields:
        "image" uint8 (3, h, w), "size" (H, W) of the image before it was resized, "labels" int16 (H, W) if there are
        any, "index" and "bad".

    Raises:
        RunError: a worker died.
    """
    read = functools.partial(_read_whole, source, short_side)
    return whole_images.load_whole(source, read, num_workers=num_workers, indices=indices)


def _read_whole(source: Source, short_side: int, index: int) -> dict[str, Any]:
    pixels, size = decode_resized(source.read(index), short_side, source.decoding)
    found: dict[str, Any] = {"image": pixels, "size": size}
    if isinstance(source, LabelledPixels):
        found["labels"] = torch.from_numpy(_check_size(source.read_label(index), size))
    return found


def _check_size(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if labels.shape != size:
        raise BadImage(
            f"its label image has {labels.shape[1]} x {labels.shape[0]} pixels, the image {size[1]} x {size[0]}"
        )
    return labels
