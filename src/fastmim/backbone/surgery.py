"""Changes to a timm model after it is made: skipped blocks, recomputed activations, strides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastmim.errors import RequestError


def list_blocks(model: nn.Module) -> list[str]:
    """Names of a model's blocks in execution order: the entries of timm's lists called `blocks`, over all stages.

    Empty for models without such lists, ResNets among them.
    """
    names: list[str] = []

    def collect(prefix: str, blocks: nn.Module) -> None:
        for child, block in blocks.named_children():
            if type(block) in (nn.Sequential, nn.ModuleList):  # stages in EfficientNet, pairs in DaViT
                collect(f"{prefix}.{child}", block)
            else:
                names.append(f"{prefix}.{child}")

    for name, module in model.named_modules():
        is_list = name.rpartition(".")[2] == "blocks" and isinstance(module, nn.Sequential | nn.ModuleList)
        if is_list and not name.startswith(tuple(f"{seen}." for seen in names)):
            collect(name, module)
    return names


def check_lists_blocks(model: nn.Module, name: str, setting: str) -> None:
    """Raise RequestError if a setting is on that goes block by block, and the model, called `name`, lists none."""
    if not list_blocks(model):
        raise RequestError(
            f"{setting} is on, and {name} does not list its blocks; leave it off, and lower micro_batch "
            f"where memory is short"
        )


def num_kept(num_blocks: int, share: float) -> int:
    """Number of blocks that a share keeps, rounded up; RequestError unless 0 < share <= 1."""
    if not 0 < share <= 1:
        raise RequestError(f"encoder_depth {share}: expected a share above 0 and at most 1, such as 0.75")
    if share < 1 and num_blocks == 0:
        raise RequestError(f"encoder_depth {share}: expected 1, as this backbone does not list its blocks")
    return math.ceil(share * num_blocks - 1e-9)  # 0.55 * 20 is 11.000000000000002


def skip_blocks(model: nn.Module, blocks: Sequence[str]) -> None:
    """Make the named blocks return their input. They stay in the model, so its state dict is complete."""
    for name in blocks:
        model.get_submodule(name).forward = _identity


def _identity(x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


def disable_drop_path(model: nn.Module) -> None:
    """Set every drop path rate to 0: pre-training uses none, but some timm constructors (Swin's) default to 0.1."""
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


def replace_strides(model: nn.Module) -> None:
    """Give strided 1x1 convolutions of few channels every n-th pixel instead of a stride of n: the same values.

    On x86 CPUs and channels-last maps, oneDNN's weight gradient of these convolutions writes past its buffer and
    corrupts the heap: below 16 channels with AVX-512, below 8 with AVX2. FastViT, MobileOne and RepVGG begin with
    one, GERNet has one of 13 channels (docs/reports/onednn-strided-1x1-heap.md).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            rows, columns = module.stride
            if (rows, columns) != (1, 1) and module.padding == (0, 0) and module.in_channels < 16:
                module.stride = (1, 1)
                module.register_forward_pre_hook(partial(_every, rows, columns))


def _every(rows: int, columns: int, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0][..., ::rows, ::columns],)


def checkpoint_activations(model: nn.Module, name: str) -> None:
    """Store only each block's input for the backward pass and recompute the rest.

    Raises:
        RequestError: the model, called `name`, does not list its blocks.
    """
    check_lists_blocks(model, name, "checkpoint_activations")
    for module in map(model.get_submodule, list_blocks(model)):
        if "forward" not in vars(module):  # neither wrapped already nor skipped
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def untrained_head(whole: Mapping[str, Tensor], bare: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values for the classifier's tensors, those in `whole` but not in `bare`: norms the identity, all others zero."""
    head = {}
    for name in whole.keys() - bare.keys():
        shape, dtype = whole[name].shape, whole[name].dtype
        is_scale = name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1)
        head[name] = torch.full(shape, is_scale, dtype=dtype)
    return head
