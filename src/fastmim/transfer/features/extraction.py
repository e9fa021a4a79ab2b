"""Feature extraction with a frozen backbone: the images of a source, in order -> one vector each."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmim.data.center_crops import Indices, load_centers
from fastmim.data.sources import Source
from fastmim.errors import RunError
from fastmim.training.evaluating import evaluating
from fastmim.transfer.features.encoder import Encoder


@dataclass(frozen=True)
class Extracted:
    """Features of one batch."""

    features: Tensor
    """(b, D) float32 on the CPU; b may be 0."""
    indices: Tensor
    """(b,) int64, the images' positions in the source."""
    bad: list[tuple[str, str]]
    """(name, reason) of the batch's unreadable images, which have no features."""


def extract(
    encoder: Encoder,
    source: Source,
    *,
    indices: Indices | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    bf16: bool = False,
) -> Generator[Extracted, None, None]:
    """Encode the central crop of each image, in order, as a stream: only a few batches are in memory at a time.

    Args:
        encoder: The frozen encoder, on the device to use.
        source: The images; their labels are ignored.
        indices: Positions of the images to encode, in this order; all if None.
        batch_size: Images at once.
        num_workers: Worker processes that read and crop; 0 uses the main process.
        bf16: Autocast to bfloat16.

    Raises:
        RunError: a worker process died.
    """
    device = encoder.mean.device
    batches = load_centers(
        source,
        size=encoder.backbone.img_size,
        batch_size=batch_size,
        indices=indices,
        num_workers=num_workers,
        crop_pct=encoder.crop_pct,
        pin_memory=device.type == "cuda",
    )
    # A batch is yielded once the next one has been started, so that the device never waits for the consumer.
    started: tuple[Extracted, torch.Event | None] | None = None
    for batch in batches:
        with evaluating(encoder), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            images = batch["images"].to(device, non_blocking=True)
            vectors = encoder(images) if len(images) else torch.empty(0, encoder.width)
            found = Extracted(vectors.to("cpu", non_blocking=True), batch["indices"], batch["bad"])
        event = _record(device)
        if started:
            yield _wait(*started)
        started = found, event
    if started:
        yield _wait(*started)


def _record(device: torch.device) -> torch.Event | None:
    """Record an event after the device's work so far; None on the CPU, which runs synchronously."""
    if device.type == "cpu":
        return None
    event = torch.Event(device)
    event.record()
    return event


def _wait(found: Extracted, event: torch.Event | None) -> Extracted:
    if event is not None:
        event.synchronize()
    return found


def gather(
    encoder: Encoder,
    source: Source,
    *,
    indices: Indices | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    bf16: bool = False,
    max_bad_share: float = 1.0,
) -> Extracted:
    """Run `extract` and return everything as one batch.

    Raises:
        RunError: a worker process died, no image is readable, or more than `max_bad_share` of them are unreadable.
    """
    parts = list(extract(encoder, source, indices=indices, batch_size=batch_size, num_workers=num_workers, bf16=bf16))
    bad = [each for part in parts for each in part.bad]
    num_images = len(source) if indices is None else len(indices)
    if bad and (len(bad) == num_images or len(bad) > max_bad_share * num_images):
        name, reason = bad[0]
        raise RunError(
            f"{len(bad):,} of {num_images:,} images of {source.origin} ({len(bad) / num_images:.1%}) cannot be read, "
            f"the first is {name} ({reason}): repair or remove them, or raise --max-bad-share above {max_bad_share:g}"
        )
    return Extracted(torch.cat([p.features for p in parts]), torch.cat([p.indices for p in parts]), bad)
