"""Images with objects as batches: resized, flipped and cropped for training, whole for tests."""

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
from fastmim.data.greys import Decoding
from fastmim.data.loader import read_ahead
from fastmim.data.order import Shuffle, StepSampler
from fastmim.data.replacement import Replacement
from fastmim.data.sources import Source
from fastmim.data.unreadable import BadImage
from fastmim.randomness import image_keys, uniform
from fastmim.transfer.detect.coco import Scenes
from fastmim.transfer.detect.outlines import to_mask
from fastmim.transfer.detect.pasting import pasted

_STREAM, _PASTING_STREAM = 17, 19
_LEAST_SIDE = 1.0  # of a box after cropping, in pixels


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Large-scale jitter (Ghiasi et al., Simple Copy-Paste, CVPR 2021), and flips."""

    size: int
    """Side of the results in pixels."""
    scale: tuple[float, float]
    """Range of the resized image's longer side, as a multiple of `size`."""
    flip: bool
    fill: tuple[int, ...]
    """RGB beyond the image."""


def resized(height: int, width: int, long_side: float) -> tuple[int, int]:
    """The height and width of an image whose longer side is brought to this many pixels."""
    factor = long_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def decode_resized(
    data: bytes | np.ndarray, long_side: float, decoding: Decoding, expected: tuple[int, int] | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """Decode an image, its longer side brought to this many pixels (antialiased bicubic).

    Returns:
        (3, h, w) uint8, and the (H, W) of the image before.

    Raises:
        BadImage: it cannot be decoded, or its size is not the expected (H, W).
    """
    whole = decode_whole(data, decoding)
    height, width = whole.shape[:2]
    if expected is not None and (height, width) != expected:
        raise BadImage(f"it has {width} x {height} pixels, and its annotations are for {expected[1]} x {expected[0]}")
    sides = resized(height, width, long_side)
    pixels = torch.from_numpy(whole).permute(2, 0, 1)
    if sides != (height, width):
        pixels = F.interpolate(pixels[None], sides, mode="bicubic", antialias=True)[0]
    return pixels.expand(3, *sides), (height, width)


def jittered(scenes: Scenes, index: int, jitter: Jitter, randoms: Sequence[float]) -> dict[str, Tensor]:
    """An image resized, flipped and cut to a square, with what remains of its objects; crowds are left out.

    Args:
        scenes: The images.
        index: The image.
        jitter: The ranges.
        randoms: 4 numbers in [0, 1): for the scale, the place from above and from the left, and the flip.

    Returns:
        "image" (3, size, size) uint8, "boxes" (n, 4) float32, "labels" (n,) int64, and "masks" (n, size, size) uint8,
        from which the boxes are then taken, if the scenes have any.

    Raises:
        BadImage: the image or an outline cannot be used.
    """
    low, high = jitter.scale
    size, long_side = jitter.size, jitter.size * (low + randoms[0] * (high - low))
    own = (int(scenes.sizes[index, 0]), int(scenes.sizes[index, 1]))
    pixels, _ = decode_resized(scenes.read(index), long_side, scenes.decoding, own)
    height, width = pixels.shape[1:]
    top, left = (int(r * (max(0, s - size) + 1)) for r, s in zip(randoms[1:3], (height, width), strict=True))
    image = torch.tensor(jitter.fill, dtype=torch.uint8)[:, None, None].repeat(1, size, size)
    part = pixels[:, top : top + size, left : left + size]
    image[:, : part.shape[1], : part.shape[2]] = part
    numbers = [number for number in scenes.objects_of(index) if not scenes.objects.crowds[number]]
    boxes, masks = _objects(scenes, numbers, own, (height, width), (top, left), size)
    if jitter.flip and randoms[3] < 0.5:
        image, masks = image.flip(-1), masks.flip(-1)
        boxes = torch.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], dim=1)
    kept = (boxes[:, 2:] - boxes[:, :2] >= _LEAST_SIDE).all(dim=1)
    labels = torch.from_numpy(scenes.objects.labels[numbers])
    found = {"image": image, "boxes": boxes[kept], "labels": labels[kept]}
    return found | ({"masks": masks[kept]} if scenes.has_masks else {})


def _objects(
    scenes: Scenes,
    numbers: list[int],
    before: tuple[int, int],
    after: tuple[int, int],
    corner: tuple[int, int],
    size: int,
) -> tuple[Tensor, Tensor]:
    """The boxes (n, 4) and masks (n, size, size) of objects in the square at `corner` of the resized image."""
    factors = [new / old for new, old in zip(after, before, strict=True)]
    if not scenes.has_masks:
        own = torch.from_numpy(scenes.objects.boxes[numbers]).reshape(-1, 4)
        ends = torch.cat([own[:, :2], own[:, :2] + own[:, 2:]], dim=1)
        moved = ends * torch.tensor(factors[::-1] * 2) - torch.tensor([corner[1], corner[0]] * 2)
        limit = torch.tensor([min(size, after[1] - corner[1]), min(size, after[0] - corner[0])] * 2)
        return torch.minimum(moved.clamp(min=0), limit).float(), torch.zeros(len(numbers), 0, 0, dtype=torch.uint8)
    masks = torch.zeros(len(numbers), size, size, dtype=torch.uint8)
    boxes = torch.zeros(len(numbers), 4)
    rows, columns = (  # the pixel at the middle of each new one
        ((np.arange(start, min(start + size, new)) + 0.5) * (old / new)).astype(np.int64)
        for start, new, old in zip(corner, after, before, strict=True)
    )
    for position, number in enumerate(numbers):
        seen = to_mask(scenes.objects.outlines[number], *before)[rows[:, None], columns[None]]
        across, down = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
        if len(across):
            masks[position, : seen.shape[0], : seen.shape[1]] = torch.from_numpy(seen)
            boxes[position] = torch.tensor([across[0], down[0], across[-1] + 1, down[-1] + 1])
    return boxes, masks


@dataclass(frozen=True, eq=False)
class _Crops(Dataset[dict[str, Any]]):
    """The map-style dataset in the workers: a micro-batch's indices -> its tensors."""

    scenes: Scenes
    seed: int
    jitter: Jitter
    paste: bool

    def __getitems__(self, batch: tuple[int, np.ndarray]) -> dict[str, Any]:
        """Read one micro-batch; see `loader.load` for keys and unreadable images."""
        epoch, indices = batch
        keys = image_keys(self.seed, epoch, torch.from_numpy(indices))
        randoms = uniform(keys, 4, stream=_STREAM).tolist()
        found: list[dict[str, Tensor]] = []
        replacement = Replacement(self.scenes)
        for position, index in enumerate(indices.tolist()):
            usable = replacement.first(index, functools.partial(self._jittered, randoms[position]))
            if usable is None:
                return {"unreadable": replacement.bad()}
            found.append(usable[1])
        if self.paste:
            most = max(len(part["labels"]) for part in found)
            found = pasted(found, uniform(keys, most, stream=_PASTING_STREAM).tolist())
        joined = {name: torch.cat([part[name] for part in found]) for name in found[0] if name != "image"}
        images = torch.stack([part["image"] for part in found])
        counts = [len(part["labels"]) for part in found]
        return joined | {"images": images, "counts": counts, "keys": keys, "bad": replacement.bad()}

    def _jittered(self, randoms: list[float], index: int) -> dict[str, Tensor]:
        return jittered(self.scenes, index, self.jitter, randoms)


def load_crops(
    scenes: Scenes,
    *,
    jitter: Jitter,
    paste: bool = False,
    seed: int,
    global_batch: int,
    first_step: int,
    last_step: int,
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
        jitter: How they are resized, flipped and cropped.
        paste: Paste objects of one image of a micro-batch on another, see `pasting.pasted`; the scenes have masks.

    Yields:
        "images" uint8 (b, 3, size, size); "boxes" float32 (n, 4) and "labels" int64 (n,) of all its objects; "masks"
        uint8 (n, size, size) if the scenes have any; "counts", the numbers of objects of each image; "keys" int64
        (b,); and "bad", a list of (name, reason) of unusable images, each replaced by the next usable one.

    Raises:
        RunError: 100 images in a row were unusable, or a worker died.
    """
    order = StepSampler(len(scenes), global_batch, seed, first_step, last_step, accumulation, rank, world_size, shuffle)
    return read_ahead(
        _Crops(scenes, seed, jitter, paste), order, scenes.origin, num_workers=num_workers, pin_memory=pin_memory
    )


def load_whole(
    source: Source, *, long_side: int, num_workers: int = 0, indices: Sequence[int] | None = None
) -> Generator[dict[str, Any]]:
    """Read whole images in order, one at a time; see `whole_images.load_whole`.

    Args:
        source: The images.
        long_side: Pixels of the resized image's longer side.
        num_workers: Number of worker processes; 0 reads in this process.
        indices: The images to read; all if None.

    Yields:
        "image" uint8 (3, h, w), "size" (H, W) of the image before it was resized, "index" and "bad".

    Raises:
        RunError: a worker died.
    """
    read = functools.partial(_read_whole, source, long_side)
    return whole_images.load_whole(source, read, num_workers=num_workers, indices=indices)


def _read_whole(source: Source, long_side: int, index: int) -> dict[str, Any]:
    expected = None
    if isinstance(source, Scenes):
        expected = (int(source.sizes[index, 0]), int(source.sizes[index, 1]))
        source.ground_truth([index])  # outlines that cannot be read make it unusable
    pixels, size = decode_resized(source.read(index), long_side, source.decoding, expected)
    return {"image": pixels, "size": size}
