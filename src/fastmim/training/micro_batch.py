"""The largest micro-batch that fits in a device's memory, found by trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmim.errors import RequestError, first_line

_SPARE = 0.05  # share of the device's memory left free, for fragmentation and what a compiled step plans ahead


def largest_micro_batch(
    model: nn.Module,
    forward: Callable[[dict[str, Any]], Tensor],
    make_batch: Callable[[int], dict[str, Any]],
    *,
    batch_size: int,
    img_size: int,
    device: torch.device,
) -> int:
    """Find the largest equal part of a batch whose forward and backward pass fit on the device.

    The trial runs eagerly, which takes no less memory than the compiled step, and with room for AdamW's two moments.

    Args:
        model: On the device; left as it was.
        forward: Batch -> loss, as `loop.make_forward` makes it.
        make_batch: Number of images -> a batch of them on the device.
        batch_size: Images per step; parts are its divisors.
        img_size: Side of the images in pixels, for the message.
        device: Where the model is.

    Raises:
        RequestError: the device does not report running out of memory, or not even one image fits.
    """
    if not tells_when_full(device):
        raise RequestError(
            f"micro_batch is 'auto' on {device}; expected a CUDA device, which tells when its memory is full: "
            f"give a number here"
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    sizes = [n for n in range(batch_size, 0, -1) if batch_size % n == 0]
    for num_images in sizes:
        reserved: list[Tensor] = []
        try:
            reserved = [torch.empty_like(p) for p in parameters for _ in range(2)] + _spare(device)
            forward(make_batch(num_images)).backward()
            return num_images
        except torch.OutOfMemoryError:
            continue
        finally:
            reserved.clear()
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])  # batch norms have counted the images of the trial
    raise RequestError(
        f"micro_batch is 'auto', and not even {sizes[-1]} image of {img_size} px fits in the memory of {device}; "
        f"expected a smaller backbone or image: lower img_size, or set checkpoint_activations"
    )


def out_of_memory(error: Exception, *, rank: int) -> str:
    """The message of a process whose memory is full."""
    return (
        f"process {rank} is out of memory ({first_line(error)[:200]}); lower --micro-batch or set "
        f"--checkpoint-activations, and run the same command to resume"
    )


def tells_when_full(device: torch.device) -> bool:
    """Whether this device raises OutOfMemoryError (a CPU process is killed instead)."""
    return device.type == "cuda"


def _spare(device: torch.device) -> list[Tensor]:
    if device.type != "cuda":
        return []
    total = torch.cuda.get_device_properties(device).total_memory
    return [torch.empty(int(_SPARE * total), dtype=torch.uint8, device=device)]
