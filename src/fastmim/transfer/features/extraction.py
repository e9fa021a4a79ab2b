"""Features of a frozen backbone: images of any source, in order -> one vector each."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmim.data.center_crops import Indices, load_centers
from fastmim.data.sources import Source
from fastmim.errors import RunError
from fastmim.transfer.features.encoder import Encoder, evaluating


@dataclass(frozen=True)
class Extracted:
    """Features of one batch."""

    features: Tensor
    """(b, D) float32 on the CPU; b may be 0."""
    indices: Tensor
    """(b,) int64, positions in the source."""
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
    """Encode images in the order of the source by the central crop, as a stream: memory stays that of a few batches.

    Args:
        encoder: On the device that is to do the work.
        source: The images; labels are not looked at.
        indices: Which images, in this order; all if None.
        batch_size: Images at once.
        num_workers: Worker processes that read and crop; 0 does it here.
        bf16: Autocast to bfloat16.

    Raises:
        RunError: a data worker died.
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
    # A batch is given out after the next one has been started, so that the device never waits for the reader.
    started: tuple[Extracted, torch.Event | None] | None = None
    for batch in batches:
        with evaluating(encoder), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            images = batch["images"].to(device, non_blocking=True)
            vectors = encoder(images) if len(images) else torch.empty(0, encoder.width)
            found = Extracted(vectors.to("cpu", non_blocking=True), batch["indices"], batch["bad"])
        event = _record(device)
        if started:
            yield _finished(*started)
        started = found, event
    if started:
        yield _finished(*started)


def _record(device: torch.device) -> torch.Event | None:
    """A mark in the device's work so far; None on the CPU, which does everything at once."""
    if device.type == "cpu":
        return None
    event = torch.Event(device)
    event.record()
    return event


def _finished(found: Extracted, event: torch.Event | None) -> Extracted:
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
    """All of `extract` in memory.

    Raises:
        RunError: a data worker died, nothing is readable, or more than `max_bad_share` of the images are not.
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
