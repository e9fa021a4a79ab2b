"""Reading images: folders and packs against Pillow and torchvision's transforms, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fastmim.bench.timing import Sides, Times, ratios, take_turns
from fastmim.data.augment import prepare
from fastmim.data.loader import load
from fastmim.data.sources import Source
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD

REFERENCE = "Pillow + torchvision"
SIZE, BATCH = 128, 64


class Pictures(Dataset[torch.Tensor]):
    """Files read by Pillow, as with ImageFolder."""

    def __init__(self, source: Source, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths = [source.name(index) for index in range(len(source))]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Path(self.paths[index]).open("rb") as file:
            return self.transform(Image.open(file).convert("RGB"))


def measure(
    tiers: dict[str, Source], others: Mapping[str, Source], *, rounds: int, batch: int = BATCH
) -> tuple[dict[str, Any], Times]:
    """Time every pipeline in turns.

    Args:
        tiers: From `corpus.make_tiers`; the reference reads "folder".
        others: Folders of other files by their kind, each with a reference of its own.
        rounds: Timed passes over the images.
        batch: Images in a batch.

    Returns:
        The summary by pipeline, and the times.
    """
    sides: dict[str, Callable[[], Any]] = {
        REFERENCE: partial(read_plainly, tiers["folder"], batch),
        "folder, float batches": partial(read, tiers["folder"], batch, normalised=True),
    }
    sides |= {name: partial(read, source, batch, normalised=False) for name, source in tiers.items()}
    summary, times = _compare(sides, len(tiers["folder"]), batch, rounds)
    for kind, source in others.items():
        size = min(batch, len(source))
        sides = {
            f"{REFERENCE}, {kind}": partial(read_plainly, source, size),
            f"folder, {kind}": partial(read, source, size, normalised=False),
        }
        more, further = _compare(sides, len(source), size, rounds)
        summary |= more
        times = Times(times.cpu | further.cpu, times.wall | further.wall, on_cpu=True)
    return summary, times


def _compare(sides: Sides, num_images: int, batch: int, rounds: int) -> tuple[dict[str, Any], Times]:
    """Time sides that read the same images, the reference first."""
    times = take_turns(sides, rounds=rounds)
    rates, reference = times.rates(num_images // batch * batch), next(iter(sides))
    return {
        name: rates[name] | {"times_faster": ratios(times.seconds, baseline=reference, side=name)} for name in sides
    }, times


def read_plainly(source: Source, batch: int) -> None:
    """Make one shuffled pass over the files with Pillow and torchvision."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    for _ in DataLoader(Pictures(source, transform), batch_size=batch, shuffle=True, drop_last=True):
        pass


def read(source: Source, batch: int, *, normalised: bool) -> None:
    """Make one shuffled pass with fastmim's loader; `normalised` adds the flip and normalisation done on the device."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    steps = len(source) // batch
    for found in load(source, size=SIZE, seed=0, global_batch=batch, first_step=0, last_step=steps):
        if normalised:
            prepare(found, mean, std)
