"""How many images a device takes at once, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmim.errors import RequestError

_SPARE = 0.05  # share of the device's memory that stays free: what fragments, and what a compiled step plans ahead


def largest_micro_batch(
    model: nn.Module,
    *,
    batch_size: int,
    img_size: int,
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    device: torch.device,
    bf16: bool,
    labelled: bool = False,
) -> int:
    """The largest equal part of a batch whose forward and backward pass fit on the device.

    Tried eagerly, which takes no less memory than the compiled step, and with room for AdamW's two moments.

    Args:
        model: On the device; forward(**prepare(batch)) returns {"loss": ...}.
        batch_size: Images of a step; parts are its divisors.
        img_size: Side of the images in pixels.
        prepare: The device's half of the augmentation.
        device: Where the model is.
        bf16: Autocast the forward pass.
        labelled: The model takes labels too.

    Raises:
        RequestError: the device does not tell when its memory is full, or not even one image fits.
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
            batch = {
                "images": torch.zeros(num_images, 3, img_size, img_size, dtype=torch.uint8, device=device),
                "keys": torch.zeros(num_images, dtype=torch.int64, device=device),
            }
            if labelled:
                batch["labels"] = torch.zeros_like(batch["keys"])
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model(**prepare(batch))["loss"]
            loss.backward()
            return num_images
        except torch.OutOfMemoryError:
            continue
        finally:
            reserved.clear()
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])  # batch norms have counted the trial's images
    raise RequestError(
        f"micro_batch is 'auto', and not even {sizes[-1]} image of {img_size} px fits in the memory of {device}; "
        f"expected a smaller backbone or image: lower img_size, or set checkpoint_activations"
    )


def tells_when_full(device: torch.device) -> bool:
    """Whether running out of memory is an error there and not the end of the process."""
    return device.type == "cuda"


def _spare(device: torch.device) -> list[Tensor]:
    if device.type != "cuda":
        return []
    total = torch.cuda.get_device_properties(device).total_memory
    return [torch.empty(int(_SPARE * total), dtype=torch.uint8, device=device)]
