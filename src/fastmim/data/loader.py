"""Training batches: a pure function of (seed, step, global batch), read ahead by worker processes."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fastmim.data.augment import CROP_STREAM, NUM_RANDOMS, decode_crop
from fastmim.data.order import Shuffle, StepSampler, steps_per_epoch
from fastmim.data.replacement import Replacement
from fastmim.data.sources import Source
from fastmim.data.sources.objects import SCHEME as PYTHON
from fastmim.data.workers import dismiss, obey_parent_only, signals_blocked
from fastmim.errors import RequestError, RunError, first_line
from fastmim.randomness import image_keys, uniform
from fastmim.system.processes import NO_MAIN_GUARD, check_main_guard
from fastmim.system.signals import Stopped, stop_requested

_POLL_SECONDS = 1.0
_NO_GUARD = (
    'the script has no `if __name__ == "__main__":`, and data workers, which import the script, would start it all '
    "again; put the calls of fastmim below such a line, or give num_workers=0"
)


@dataclass(frozen=True, eq=False)
class _Crops(Dataset[dict[str, Any]]):
    """The map-style dataset in the workers: a micro-batch's indices -> its tensors."""

    source: Source
    size: int
    seed: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    transform: Callable[[torch.Tensor, int], torch.Tensor] | None = None

    def __getitems__(self, batch: tuple[int, np.ndarray]) -> dict[str, Any]:
        """Crop one micro-batch. An image that appears twice, once as a replacement, is cropped in two ways."""
        epoch, indices = batch
        keys = image_keys(self.seed, epoch, torch.from_numpy(indices))
        randoms = uniform(keys, NUM_RANDOMS, stream=CROP_STREAM).tolist()
        images = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        replacement, used = Replacement(self.source), []
        for index, key, numbers, image in zip(indices.tolist(), keys.tolist(), randoms, images, strict=True):
            found = replacement.first(index, functools.partial(self._crop, numbers))
            if found is None:  # reported, not raised: an exception would carry the worker's traceback
                return {"unreadable": replacement.bad()}
            readable, crop = found
            image.copy_(crop if self.transform is None else self.transform(crop, key))
            used.append(readable)
        result = {"images": images, "keys": keys, "bad": replacement.bad()}
        if self.source.labels is not None:
            result["labels"] = torch.from_numpy(self.source.labels[used])
        return result

    def _crop(self, randoms: list[float], index: int) -> torch.Tensor:
        data, decoding = self.source.read(index), self.source.decoding
        return decode_crop(data, self.size, randoms, decoding, scale=self.scale, ratio=self.ratio)


def load(
    source: Source,
    *,
    size: int,
    seed: int,
    global_batch: int,
    first_step: int,
    last_step: int,
    accumulation: int = 1,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    pin_memory: bool = False,
    start_method: str | None = None,
    transform: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    shuffle: Shuffle = "full",
) -> Generator[dict[str, Any], None, None]:
    """Read the micro-batches of steps `first_step` to `last_step` - 1, in order.

    The result does not depend on the number of workers, nor, joined over ranks, on the number of processes.
    Nothing before `first_step` is read. Workers end when the generator ends or is closed, or with this process,
    even if it is killed.

    Args:
        source: The images.
        size: Side of the crops, in pixels.
        seed: The run's seed.
        global_batch: Images per step over all processes.
        first_step: The first step to read, counted from 0 over the whole run.
        last_step: One past the last step.
        accumulation: Micro-batches per step.
        rank: Number of this process, 0 to `world_size` - 1.
        world_size: Number of processes that share the global batch.
        num_workers: Number of worker processes; 0 reads in this process.
        crop_scale: Range of the crop's share of the image's area.
        crop_ratio: Range of the crop's width / height.
        pin_memory: Put batches into page-locked memory.
        start_method: "fork", "spawn" or "forkserver"; the platform's default if None.
        transform: More augmentation in the worker, (crop uint8 (3, size, size), the image's key) -> the same
            shape: a picklable function of these two only.
        shuffle: See `order.shuffled`.

    Yields:
        "images" uint8 (b, 3, size, size), "keys" int64 (b,), "labels" int64 (b,) if the source has any,
        and "bad", a list of (name, reason) of unreadable images, each replaced by the next readable one.

    Raises:
        RequestError: The source has fewer images than one batch.
        RunError: 100 images in a row were unreadable, or a worker died.
    """
    steps_per_epoch(source, global_batch)
    crops = _Crops(source, size, seed, crop_scale, crop_ratio, transform)
    order = StepSampler(len(source), global_batch, seed, first_step, last_step, accumulation, rank, world_size, shuffle)
    return read_ahead(
        crops, order, source.origin, num_workers=num_workers, pin_memory=pin_memory, start_method=start_method
    )


def read_ahead(
    dataset: Dataset[dict[str, Any]],
    requests: Iterable[Any],
    origin: str,
    *,
    num_workers: int,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Let worker processes answer requests with the dataset's `__getitems__`, in order.

    Args:
        dataset: Small when pickled.
        requests: Arguments of `__getitems__`, one a batch.
        origin: The source's origin, for messages.
        num_workers: Number of worker processes; 0 reads in this process.
        pin_memory: Put batches into page-locked memory.
        start_method: "fork", "spawn" or "forkserver"; the platform's default if None.

    Raises:
        RunError: An answer is {"unreadable": ...}, or a worker died.
        RequestError: A worker imported the user's script, which has no `if __name__ == "__main__":`.
        Stopped: A signal has come (`StopSignals`), and for a second the workers have not answered: the file system
            may have gone. They end when the exception has been handled. Or one of them has died of the signal.
    """
    check_main_guard()
    loader: DataLoader[dict[str, Any]] = DataLoader(
        dataset,
        batch_sampler=requests,  # passed to `__getitems__` unchanged
        collate_fn=_identity,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=obey_parent_only,
        multiprocessing_context=start_method if num_workers else None,
        generator=torch.Generator(),  # otherwise starting the workers draws from the global generator
        timeout=_POLL_SECONDS if num_workers else 0,
    )
    with signals_blocked():  # before a worker's first instruction
        others = multiprocessing.active_children()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Got pickle error")  # an error follows
                batches = iter(loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            if not origin.startswith(f"{PYTHON}://"):
                raise
            raise RequestError(
                f"data is {origin}, which cannot be sent to data workers ({first_line(error)}); expected what pickle "
                f"takes: define its class at the top of a module, or give num_workers=0"
            ) from None
        except BrokenPipeError:  # the dataset is no longer awaited
            raise RequestError(f"a data worker died as it started, most often because {_NO_GUARD}") from None
        workers = [child for child in multiprocessing.active_children() if child not in others]
    return _receive(batches, origin, workers)


def _identity(batch: Any) -> Any:
    return batch


def _receive(
    batches: Iterator[dict[str, Any]], origin: str, workers: list[BaseProcess]
) -> Generator[dict[str, Any], None, None]:
    try:
        while (batch := _wait(batches, workers)) is not None:
            if "unreadable" in batch:
                (name, reason), num = batch["unreadable"][-1], len(batch["unreadable"])
                raise RunError(
                    f"no readable image in {origin} after {num} in a row up to {name} ({reason}): "
                    "check that the files are images and complete"
                )
            yield batch
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise _death(workers, first_line(error)) from None
    finally:
        del batches, workers  # end the workers now, even if a traceback keeps this frame alive


def _death(workers: Iterable[BaseProcess], what: str) -> RequestError | RunError | Stopped:
    """The error for a worker that died."""
    if any(worker.exitcode == NO_MAIN_GUARD for worker in workers):
        return RequestError(_NO_GUARD)
    if stop_requested():
        return Stopped("stopped while no data came: run the same command to resume")
    return RunError(
        f"a data worker died ({what}): most often memory or shared memory ran out; lower --num-workers, or raise the "
        f"container's --shm-size"
    )


def _wait(batches: Iterator[dict[str, Any]], workers: list[BaseProcess]) -> dict[str, Any] | None:
    """Return the next batch, or None at the end; give up if a signal has come and there is no batch for a second."""
    while True:
        try:
            return next(batches, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
        if stop_requested():
            dismiss(workers)
            raise Stopped("stopped while no data came: run the same command to resume", holding=batches)
        pinning = getattr(batches, "_pin_memory_thread", None)
        if pinning and not pinning.is_alive():  # with a timeout, the loader itself would wait for ever
            raise RuntimeError("DataLoader worker cannot be heard: the thread for page-locked memory has ended")
