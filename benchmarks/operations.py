"""Two forms of an operation, side by side: attention fused and plain, patches by convolution and by matrix product.

    python benchmarks/operations.py [--device cpu --rounds 7]

Ratios are the time of the form that fastmim does not choose there over that of the form that it chooses, so a row
below 1 is a case for another rule in `fastmim.backbone.attention` or `fastmim.backbone.patches`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.backbone.attention import takes_plain
from fastmim.backbone.patches import multiply_patches
from fastmim.bench import records
from fastmim.bench.timing import ratios, take_turns

HEADS, WIDTH = 6, 64
TOKENS = 4096
"""Tokens of a batch, so that all lengths do the same work outside attention."""

# Queries and keys of an image, and whether there is a learned bias: windows and ViTs, then PVTv2's reduced keys.
LENGTHS = [(n, n, biased) for biased in (False, True) for n in (17, 49, 65, 197, 577, 784, 1025)]
LENGTHS += [(256, 16, False), (1024, 16, False), (3136, 49, False)]

# Channels in, channels out, patch and image side: ViT-B, Swin and ConvNeXt, then ConvNeXt's downsampling.
PATCHES = [(3, 768, 16, 128), (3, 96, 4, 128), (96, 192, 2, 32), (384, 768, 2, 8)]


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention by torch's own function."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention as two matrix products and a softmax."""
    logits = q * q.shape[-1] ** -0.5 @ k.mT
    return (logits if bias is None else logits + bias).softmax(-1) @ v


def run(function: Callable[..., Tensor], inputs: list[Tensor | None], *, device: str, bf16: bool, train: bool) -> None:
    """Forward, and backward if training."""
    with torch.autocast(device, torch.bfloat16, enabled=bf16), torch.set_grad_enabled(train):
        found = function(*inputs)
    if train:
        found.backward(torch.ones_like(found))


def attention(queries: int, keys: int, *, biased: bool, bf16: bool, train: bool, device: str, rounds: int) -> Any:
    """The other form's time over the chosen one's, and which that is."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    batch = max(1, TOKENS // queries)

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype, requires_grad=train)

    inputs = [tensor(batch, HEADS, length, WIDTH) for length in (queries, keys, keys)]
    inputs += [tensor(1, HEADS, queries, keys, dtype=torch.float32) if biased else None]  # type: ignore[list-item]
    sides = {
        form.__name__: partial(run, form, inputs, device=device, bf16=bf16, train=train) for form in (fused, plain)
    }
    with torch.set_grad_enabled(train):
        is_plain = takes_plain(queries * keys, device=device, dtype=dtype, biased=biased)
    chosen, other = ("plain", "fused") if is_plain else ("fused", "plain")
    seconds = take_turns(sides, rounds=rounds, device=device, warm_up=2).seconds
    return {"chosen": chosen, "times_faster": ratios(seconds, baseline=other, side=chosen)}


def patches(channels: int, width: int, patch: int, side: int, *, bf16: bool, device: str, rounds: int) -> Any:
    """The convolution's time over the matrix product's, forward and backward."""
    convolution, product = (nn.Conv2d(channels, width, patch, patch, device=device) for _ in range(2))
    multiply_patches(product)
    images = torch.randn(16, channels, side, side, device=device).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()
    sides = {
        name: partial(run, form, [images], device=device, bf16=bf16, train=True)
        for name, form in (("convolution", convolution), ("product", product))
    }
    seconds = take_turns(sides, rounds=rounds, device=device, warm_up=2).seconds
    return {"chosen": "product", "times_faster": ratios(seconds, baseline="convolution", side="product")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"attention": {}, "patches": {}}
    for bf16 in (True, False):
        precision = "bf16" if bf16 else "float32"
        for queries, keys, biased in LENGTHS:
            for train in (True, False):
                words = f"{queries} x {keys}{', bias' if biased else ''}, {precision}, {'train' if train else 'infer'}"
                found["attention"][words] = attention(
                    queries, keys, biased=biased, bf16=bf16, train=train, device=options.device, rounds=options.rounds
                )
        for channels, width, patch, side in PATCHES:
            found["patches"][f"{channels} to {width}, {patch} px of {side}, {precision}"] = patches(
                channels, width, patch, side, bf16=bf16, device=options.device, rounds=options.rounds
            )
    records.write(
        Path(__file__).parent / "records",
        "operations" if options.device == "cpu" else f"operations-{options.device.partition(':')[0]}",
        show=True,
        claim="of two forms of an operation, fastmim chooses the faster one",
        config=vars(options) | {"heads": HEADS, "head_width": WIDTH, "tokens": TOKENS, "threads": 1},
        raw={},
        summary=found,
        device=options.device,
    )


if __name__ == "__main__":
    main()
