"""Parameter groups and AdamW, and the optimiser's state by parameter name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

MOMENTS = ("exp_avg", "exp_avg_sq")


def build(model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> AdamW:
    """AdamW with decay on matrices and kernels only: none on vectors (biases, norms) and on
    `model.no_weight_decay()` (tokens, position embeddings, relative-position tables).
    """
    ask: Callable[[], set[str]] = getattr(model, "no_weight_decay", set)
    spared = ask()
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (undecayed if parameter.ndim <= 1 or name in spared else decayed).append(parameter)
    decays = ((decayed, weight_decay), (undecayed, 0.0))
    return adamw([{"params": params, "weight_decay": decay} for params, decay in decays if params], betas=betas)


def adamw(groups: list[dict[str, Any]], *, betas: tuple[float, float]) -> AdamW:
    """AdamW over groups of parameters, which may have an "lr_scale".

    The fused form, because it alone can skip a step on the device (see `loop.fit`).
    """
    return AdamW(groups, lr=0.0, betas=betas, fused=True)


def named_state(model: nn.Module, optimizer: AdamW) -> dict[str, dict[str, Tensor]]:
    """The optimiser's tensors by parameter name; empty for parameters that have made no step."""
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


def load_named_state(model: nn.Module, optimizer: AdamW, state: dict[str, dict[str, Tensor]]) -> None:
    """Put tensors by parameter name into an optimiser over the model's parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    whole = optimizer.state_dict()
    whole["state"] = {index: state[name] for index, name in enumerate(order) if name in state}
    optimizer.load_state_dict(whole)


def resize(model: nn.Module, optimizer: AdamW, img_size: int, *, rebuild: Callable[[nn.Module], AdamW]) -> AdamW:
    """Change the model's input size and carry the optimiser's state across.

    Position embeddings and relative-position tables change shape, and their moments must follow. Resampling
    is the model's own business, so the moments are resampled by it too: put in the place of the parameters
    of a copy, which is then resized.

    Args:
        model: Has `set_input_size`; resized in place.
        optimizer: Over the model's parameters at the old size.
        img_size: The new image side in pixels.
        rebuild: Makes an optimiser for the resized model.

    Returns:
        The optimiser for the resized model, with the old one's state.
    """
    state = named_state(model, optimizer)
    moments = {moment: _resized(model, {n: s[moment] for n, s in state.items()}, img_size) for moment in MOMENTS}
    for name, resampled in moments["exp_avg_sq"].items():
        # Cubic resampling overshoots. A second moment below all that was seen would turn into a huge step.
        resampled.clamp_(min=state[name]["exp_avg_sq"].min())
    model.set_input_size(img_size)  # type: ignore[operator]
    resized = rebuild(model)
    carried = {n: {"step": s["step"]} | {m: moments[m][n] for m in MOMENTS} for n, s in state.items()}
    load_named_state(model, resized, carried)
    return resized


def _resized(model: nn.Module, tensors: dict[str, Tensor], img_size: int) -> dict[str, Tensor]:
    """Tensors in the shape of some of the model's parameters, resampled as the parameters would be."""
    stand_in = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in stand_in.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])
    stand_in.set_input_size(img_size)  # type: ignore[operator]
    return {name: p.detach().clone() for name, p in stand_in.named_parameters() if name in tensors}
