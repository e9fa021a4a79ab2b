"""Sharding by PyTorch's FSDP2: weights, gradients and moments divided among the processes, block by block."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW

from fastmim.backbone.surgery import list_blocks
from fastmim.training import optim
from fastmim.training.batch_norm import share_batch_norms
from fastmim.training.plan import Plan

Rebuild = Callable[[nn.Module], AdamW]
"""Makes an optimiser for a model's parameters."""


def divide(model: nn.Module, optimizer: AdamW, plan: Plan, *, rebuild: Rebuild) -> tuple[nn.Module, AdamW]:
    """Divide a model and its optimiser among the processes, all of which have the same ones.

    A block's weights are gathered when it is entered, in bfloat16 if that is the precision, and freed when it is left;
    gradients are averaged in float32. What is outside of blocks stays gathered for the whole step. The model moves to
    host memory, for `unite` and for what the main process does at intervals.

    Args:
        model: May recompute its activations.
        optimizer: Over the model's parameters.
        plan: Its blocks are compiled one by one where it says so.
        rebuild: Makes an optimiser for the copy.

    Returns:
        A copy of the model, and the optimiser over its parameters.
    """
    divided = copy.deepcopy(model.cpu())
    share_batch_norms(divided, plan.device)
    # The loop goes backward from the loss alone, which nothing changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(plan.device.type, (plan.world.size,))
    dtype = torch.bfloat16 if plan.bf16 else None
    for block in map(divided.get_submodule, list_blocks(divided)):
        if plan.compile:  # its forward alone: weights are gathered before, in `__call__`
            block.forward = torch.compile(block.forward, dynamic=False)
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(dtype, torch.float32))
    # Targets are computed from the images, in float32.
    fully_shard(divided, mesh=mesh, mp_policy=MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False))
    parameters, theirs = dict(divided.named_parameters()), rebuild(divided)
    state = {
        name: {key: value if key == "step" else _placed_like(parameters[name], value) for key, value in values.items()}
        for name, values in optim.named_state(model, optimizer).items()
    }
    optim.load_named_state(divided, theirs, state)
    return divided, theirs


def unite(divided: nn.Module, optimizer: AdamW, model: nn.Module, *, rebuild: Rebuild) -> AdamW:
    """The reverse of `divide`, in host memory; the model's optimiser, the same in every process."""
    gather(divided, model.cpu())
    theirs = rebuild(model)
    state = {
        name: {key: whole(value).cpu() for key, value in values.items()}
        for name, values in optim.named_state(divided, optimizer).items()
    }
    optim.load_named_state(model, theirs, state)
    return theirs


def gather(divided: nn.Module, model: nn.Module | None) -> None:
    """Copy the weights into the model of which `divided` is a copy; every process calls this, some with None."""
    own = model.state_dict() if model else {}
    for name, tensor in divided.state_dict().items():
        gathered = whole(tensor)
        if model:
            own[name].copy_(gathered)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all processes, which must all call this; one that is not divided as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; one that is not divided as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _placed_like(own: Tensor, value: Tensor) -> Tensor:
    """This process's part of a tensor that all have, divided like `own`."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
