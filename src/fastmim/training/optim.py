"""Parameter groups, AdamW, and the optimiser's state by parameter name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import AdamW

MOMENTS = ("exp_avg", "exp_avg_sq")


def build(model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> AdamW:
    """Make AdamW with weight decay on matrices and kernels only.

    Vectors (biases, norms) and `model.no_weight_decay()` (tokens, position embeddings, relative-position tables) are
    not decayed.
    """
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    undecayed_first = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=spared)
    return adamw(undecayed_first[::-1], betas=betas)


def adamw(groups: list[dict[str, Any]], *, betas: tuple[float, float]) -> AdamW:
    """Make AdamW over groups of parameters, which may have an "lr_scale".

    The fused form, because it alone can skip a step on the device (see `loop.train_step`).
    """
    return AdamW(groups, lr=0.0, betas=betas, fused=True)


def named_state(model: nn.Module, optimizer: AdamW) -> dict[str, dict[str, Tensor]]:
    """Return the optimiser's tensors by parameter name, without parameters that have not made a step."""
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


def load_named_state(model: nn.Module, optimizer: AdamW, state: dict[str, dict[str, Tensor]]) -> None:
    """Load tensors by parameter name into an optimiser over the model's parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    whole = optimizer.state_dict()
    whole["state"] = {index: state[name] for index, name in enumerate(order) if name in state}
    optimizer.load_state_dict(whole)


def resize(model: nn.Module, optimizer: AdamW, img_size: int, *, rebuild: Callable[[nn.Module], AdamW]) -> AdamW:
    """Change the model's input size and carry the optimiser's state across.

    Position embeddings and relative-position tables change shape, and their moments must follow. Only the model knows
    how to resample them, so the moments are put in the place of a copy's parameters, and the copy is resized.

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
        # Cubic resampling overshoots. A second moment below all earlier ones would turn into a huge step.
        resampled.clamp_(min=state[name]["exp_avg_sq"].min())
    model.set_input_size(img_size)  # type: ignore[operator]
    resized = rebuild(model)
    carried = {n: {"step": s["step"]} | {m: moments[m][n] for m in MOMENTS} for n, s in state.items()}
    load_named_state(model, resized, carried)
    return resized


def _resized(model: nn.Module, tensors: dict[str, Tensor], img_size: int) -> dict[str, Tensor]:
    """Resample tensors that have the shapes of some parameters as the model resamples those parameters."""
    stand_in = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in stand_in.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])
    stand_in.set_input_size(img_size)  # type: ignore[operator]
    return {name: p.detach().clone() for name, p in stand_in.named_parameters() if name in tensors}
