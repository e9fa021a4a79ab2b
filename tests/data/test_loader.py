"""Batches as functions of (seed, step, global batch), for any workers and processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmim.data.augment import NUM_RANDOMS, decode_crop
from fastmim.data.greys import Decoding
from fastmim.data.loader import load
from fastmim.data.order import StepSampler, steps_per_epoch
from fastmim.data.sources import Source, open_source
from fastmim.data.sources.source import ByPosition
from fastmim.data.unreadable import BadImage
from fastmim.errors import RequestError, RunError
from fastmim.randomness import image_keys, uniform
from pictures import encode, photograph


class Numbered(ByPosition):
    """Image n has the value n in every pixel; those in `bad` cannot be read."""

    num: int
    bad: tuple[int, ...]
    read_so_far: list[int]

    def __init__(self, num: int = 40, *, bad: tuple[int, ...] = (), labelled: bool = False) -> None:
        super().__init__(origin="photos/", labels=np.arange(num) * 10 if labelled else None)
        self.__dict__.update(num=num, bad=bad, read_so_far=[])  # sources are frozen

    def __len__(self) -> int:
        return self.num

    def read(self, index: int) -> np.ndarray:
        self.read_so_far.append(index)
        if index in self.bad:
            raise BadImage("broken") if index % 2 else FileNotFoundError(2, "No such file or directory")
        return np.full((20, 24), index, dtype=np.uint8)

    def name(self, index: int) -> str:
        return f"{index}.jpg"


def batches(source: Source, **options: Any) -> list[dict[str, Any]]:
    defaults = {"size": 8, "seed": 5, "global_batch": 8, "first_step": 0, "last_step": 12}
    return list(load(source, **defaults | options))


def order(source: Source, **options: Any) -> list[int]:
    return [int(image[0, 0, 0]) for batch in batches(source, **options) for image in batch["images"]]


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys()
        and all(torch.equal(x[k], y[k]) if isinstance(x[k], torch.Tensor) else x[k] == y[k] for k in x)
        for x, y in zip(a, b, strict=True)
    )


def joined(parts: list[list[dict[str, Any]]], key: str) -> torch.Tensor:
    return torch.cat([batch[key] for group in zip(*parts, strict=True) for batch in group])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Photographs in two classes, two of them truncated."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(24):
        left = 20 * number
        data = encode(photograph().crop((left, 50, left + 120, 150)), "JPEG" if number % 3 else "PNG")
        path = root / f"class{number % 2}" / f"{number:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data if number not in (4, 11) else data[:900])
    return open_source(str(root), cache_dir=root / ".cache")


# Order


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    epochs = [order(Numbered(), first_step=5 * epoch, last_step=5 * epoch + 5) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order(Numbered(), seed=6, last_step=5) != epochs[0]


def test_the_tail_is_dropped_and_differs_by_epoch() -> None:
    epochs = [order(Numbered(43), first_step=5 * epoch, last_step=5 * epoch + 5) for epoch in range(4)]
    left_out = [frozenset(range(43)) - frozenset(epoch) for epoch in epochs]
    assert all(len(epoch) == 40 and len(rest) == 3 for epoch, rest in zip(epochs, left_out, strict=True))
    assert len(set(left_out)) > 1


def test_resuming_reads_only_what_it_needs() -> None:
    whole, rest = Numbered(), Numbered()
    everything = batches(whole)
    assert same(batches(rest, first_step=7), everything[7:])
    assert len(rest.read_so_far) == 5 * 8
    assert batches(rest, first_step=12) == []


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 4), (2, 2), (8, 1)])
def test_processes_and_micro_batches_share_the_same_global_batch(world_size: int, accumulation: int) -> None:
    whole = batches(Numbered(labelled=True))
    parts = [
        batches(Numbered(labelled=True), world_size=world_size, rank=rank, accumulation=accumulation)
        for rank in range(world_size)
    ]
    assert all(len(part) == 12 * accumulation for part in parts)
    for key in ("images", "keys", "labels"):
        per_step = [
            torch.cat(
                [parts[rank][step * accumulation + i][key] for i in range(accumulation) for rank in range(world_size)]
            )
            for step in range(12)
        ]
        assert torch.equal(torch.cat(per_step), torch.cat([batch[key] for batch in whole]))


# Contents of a batch


def test_a_batch_holds_the_crops_and_keys_of_its_images(folder: Source) -> None:
    (batch,) = batches(folder, size=32, last_step=1)
    assert batch["images"].shape == (8, 3, 32, 32) and batch["images"].dtype == torch.uint8
    assert folder.labels is not None
    (epoch, indices) = next(iter(StepSampler(24, 8, 5, 0, 1)))
    keys = image_keys(5, epoch, torch.from_numpy(indices))
    assert torch.equal(batch["keys"], keys)
    randoms = uniform(keys, NUM_RANDOMS, stream=0).tolist()
    for row, index in enumerate(indices):
        if int(index) not in unreadable(folder):
            expected = decode_crop(folder.read(index), 32, randoms[row])
            assert torch.equal(batch["images"][row], expected)
            assert batch["labels"][row] == folder.labels[index]


def unreadable(source: Source) -> set[int]:
    return {index for index in range(len(source)) if source.name(index).endswith(("04.jpg", "11.jpg"))}


def test_crops_follow_the_requested_scale_and_ratio() -> None:
    class Ramp(Numbered):
        def read(self, index: int) -> np.ndarray:
            return np.tile(np.arange(0, 240, 2, dtype=np.uint8), (120, 1))

    def widths(**options: Any) -> torch.Tensor:
        images = torch.cat([batch["images"] for batch in batches(Ramp(), size=16, **options)])[:, 0].float()
        return (images[:, 0, -1] - images[:, 0, 0]) / 240

    assert widths(crop_scale=(0.01, 0.02)).max() < 0.2
    assert widths(crop_scale=(0.98, 1.0), crop_ratio=(1.0, 1.0)).min() > 0.85


def test_every_epoch_draws_new_but_reproducible_crops(folder: Source) -> None:
    first, second = batches(folder, last_step=3), batches(folder, last_step=3)
    assert same(first, second)
    later = batches(folder, first_step=3, last_step=6)
    crops = {image.numpy().tobytes() for batch in first + later for image in batch["images"]}
    assert len(crops) == 48


@pytest.mark.parametrize(
    ("num_workers", "start_method"),
    [(1, "fork"), (2, "fork"), pytest.param(1, "spawn", marks=pytest.mark.slow)],
)
def test_workers_change_nothing(folder: Source, num_workers: int, start_method: str) -> None:
    options = {"size": 16, "last_step": 7, "accumulation": 2}
    alone = batches(folder, **options)
    assert same(batches(folder, num_workers=num_workers, start_method=start_method, **options), alone)
    assert any(batch["bad"] for batch in alone)


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    batches(Numbered(), num_workers=1, last_step=2)
    batches(Numbered(), last_step=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


# Unreadable images


def test_an_unreadable_image_is_replaced_by_the_next_and_reported() -> None:
    clean, repaired = batches(Numbered(labelled=True)), batches(Numbered(labelled=True, bad=(3, 4, 39)))
    replacement = {3: 5, 4: 5, 39: 0}
    for before, after in zip(clean, repaired, strict=True):
        numbers = [int(image[0, 0, 0]) for image in before["images"]]
        assert [int(image[0, 0, 0]) for image in after["images"]] == [replacement.get(n, n) for n in numbers]
        assert after["labels"].tolist() == [10 * replacement.get(n, n) for n in numbers]
        assert torch.equal(before["keys"], after["keys"])
        met = {n for n in numbers if n in replacement} | ({4} if 3 in numbers else set())
        assert {name for name, _ in after["bad"]} == {f"{n}.jpg" for n in met}
    reasons = dict(pair for batch in repaired for pair in batch["bad"])
    assert reasons == {"3.jpg": "broken", "4.jpg": "No such file or directory", "39.jpg": "broken"}


def test_the_pixel_limit_reaches_the_decoder(folder: Source) -> None:
    with pytest.raises(RunError, match=r"more than the 100 pixels that are decoded"):
        batches(dataclasses.replace(folder, decoding=Decoding(max_pixels=100)))  # type: ignore[type-var]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_readable_stops_the_run_in_one_line(num_workers: int) -> None:
    source = Numbered(500, bad=tuple(range(500)))
    message = r"no readable image in photos/ after 100 in a row up to \d+.jpg \(.*\): check that the files"
    with pytest.raises(RunError, match=message) as caught:
        batches(source, global_batch=1, num_workers=num_workers)
    assert "\n" not in str(caught.value)


# Wrong requests


def test_fewer_images_than_a_batch() -> None:
    message = "40 images in photos/ are fewer than one batch of 1,024: lower --batch-size to 40 or less"
    with pytest.raises(RequestError, match=message):
        steps_per_epoch(Numbered(), 1024)
    with pytest.raises(RequestError, match=message):
        load(Numbered(), size=8, seed=0, global_batch=1024, first_step=0, last_step=1)
    assert steps_per_epoch(Numbered(), 40) == 1 and steps_per_epoch(Numbered(), 13) == 3


def test_a_batch_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="a batch of 8 of 40 images does not divide into 1 processes x 3 micro"):
        batches(Numbered(), accumulation=3)
    with pytest.raises(ValueError, match="a batch of 41 of 40 images"):
        StepSampler(40, 41, 0, 0, 1)


def test_other_errors_are_not_hidden() -> None:
    class Faulty(Numbered):
        def read(self, index: int) -> np.ndarray:
            raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        batches(Faulty())


def test_iteration_is_lazy() -> None:
    source = Numbered()
    iterator: Iterator[dict[str, Any]] = load(source, size=8, seed=0, global_batch=8, first_step=0, last_step=10**9)
    assert source.read_so_far == []
    next(iterator)
    assert len(source.read_so_far) == 8


def test_a_million_steps_need_no_memory(tmp_path: Path) -> None:
    sampler = StepSampler(1000, 10, 0, 0, 10**9)
    assert len(sampler) == 10**9
    assert next(iter(sampler))[0] == 0
