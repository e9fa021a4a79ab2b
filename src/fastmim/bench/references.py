"""Plain reference forms, which compute the same as fastmim the way published implementations do.

HOG by one-hot vectors at the image's resolution, attention as two matrix products and a softmax, patches by a
convolution over all of the image, unfused AdamW, the loss read at every step. All else is the same: model, masks,
precision (on CUDA, float16 with a gradient scaler instead of bfloat16) and, to rounding, the loss.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.bench.flops import DTYPES
from fastmim.data import augment
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.method import targets
from fastmim.method.mim import MIM

LEARNING_RATE = 1e-4

Network = TypeVar("Network", bound=nn.Module)


class PlainHOG(nn.Module):
    """HOG in its textbook form: convolution, atan2, a one-hot vector for every pixel, sums over cells."""

    kernels: Tensor

    def __init__(self, cell: int = 8, num_bins: int = 9) -> None:
        super().__init__()
        self.cell, self.num_bins = cell, num_bins
        sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        self.register_buffer("kernels", torch.stack([sobel, sobel.T])[:, None], persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C * num_bins, H / cell, W / cell)."""
        B, C, H, W = images.shape
        with torch.autocast(images.device.type, enabled=False):
            padded = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")
            gx, gy = (F.conv2d(padded, kernel.expand(C, 1, 3, 3), groups=C) for kernel in self.kernels[:, None])
            magnitude = torch.stack([gx, gy], -1).norm(dim=-1)
            bins = (torch.atan2(gx, gy) / math.pi * self.num_bins).floor().long() % self.num_bins
            one_hot = torch.zeros(B, C, self.num_bins, H, W, device=images.device)
            one_hot.scatter_add_(2, bins[:, :, None], magnitude[:, :, None])
            cells = one_hot.unfold(3, self.cell, self.cell).unfold(4, self.cell, self.cell).sum(dim=(-1, -2))
            return F.normalize(cells, dim=2, eps=1e-12).flatten(1, 2)


def plain(model: MIM) -> MIM:
    """Copy the model in its plain form, with the same weights."""
    model = plain_layers(model)
    model.backbone.encode_visible = partial(_encode_visible, model.backbone.model)  # type: ignore[method-assign]
    if isinstance(model.target, targets.HOG):
        device = next(model.parameters()).device
        model.target = PlainHOG(model.target.cell, model.target.num_bins).to(device)  # type: ignore[assignment]
    return model


def plain_layers(network: Network) -> Network:
    """Copy a network with plain attention and patches, and the same weights."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module._forward_pre_hooks.clear()  # which choose the form
            module.fused_attn = False  # type: ignore[assignment]
        if isinstance(module, nn.Conv2d):
            vars(module).pop("forward", None)  # the matrix product
    return network


def _encode_visible(vit: Any, images: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Encode the visible patches of all that were embedded; see `Backbone.encode_visible`."""
    prefix, patches = vit._pos_embed(vit.patch_embed(images)).tensor_split([vit.num_prefix_tokens], dim=1)
    patches = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[-1]))
    tokens = vit.norm(vit.blocks(vit.norm_pre(torch.cat([prefix, patches], dim=1))))
    return tokens[:, vit.num_prefix_tokens :], tokens[:, : vit.num_prefix_tokens]


def reference_step(model: MIM, batch: dict[str, Tensor], precision: str) -> Callable[[], float]:
    """A conventional training step, on the model's device.

    Args:
        model: From `plain`.
        batch: "images" uint8 (B, 3, S, S) and "keys" (B,), on the device.
        precision: "float32", or "bf16" or "fp16" for autocast, the latter with a gradient scaler.

    Returns:
        A function that makes one step and returns the loss.
    """
    device = batch["images"].device
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    undecayed = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def forward() -> Tensor:
        loss: Tensor = model(**augment.prepare(batch, mean, std))["loss"]
        return loss

    return conventional_step(model, forward, optimizer, precision, device)


def conventional_step(
    model: nn.Module, forward: Callable[[], Tensor], optimizer: torch.optim.AdamW, precision: str, device: torch.device
) -> Callable[[], float]:
    """A step whose loss the host reads, from the function that computes it; see `reference_step`."""
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step() -> float:
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32"):
            loss = forward()
        value = float(loss.item())
        if not math.isfinite(value):
            raise SystemExit(f"loss is {value}, stopping")
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), math.inf)  # for the norm, which is usually logged
        scaler.step(optimizer)
        scaler.update()
        return value

    return step
