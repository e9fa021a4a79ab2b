"""A user's function that measures the model as it trains, which must not disturb the training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from fastmim.errors import RequestError, RunError, first_line, shown
from fastmim.training.evaluating import evaluating
from fastmim.training.settings import check_duration

Model = TypeVar("Model", bound=nn.Module)

_TAKEN = {
    "step", "time", "images", "epoch", "loss", "lr", "grad_norm", "images_per_s", "seconds_per_step", "data_wait_share",
    "memory_gb", "skipped_steps", "explained_variance", "probe_mim_loss", "probe_knn", "probe_effective_rank",
}  # fmt: skip
"""Names in metrics.jsonl that mean something else."""


def check(function: Any, every: str) -> None:
    """Refuse what is no function, and an interval that is no duration.

    Raises:
        RequestError: it is one of them.
    """
    if not callable(function):
        raise RequestError(f"periodic is {shown(function)}; expected a function of the step and the model")
    check_duration("periodic_every", every)


def name_of(function: Callable[..., Any]) -> str:
    """What messages call a function."""
    return str(getattr(function, "__name__", type(function).__name__))


def measuring(
    function: Callable[[int, Model], Mapping[str, float] | None], model: Model, device: torch.device
) -> Callable[[int], dict[str, float]]:
    """The function of a step whose numbers are logged; see `pretrain`'s `periodic`.

    The returned function raises RunError if the user's function fails, or returns anything but a dict of numbers.
    """
    name = name_of(function)

    def measure(step: int) -> dict[str, float]:
        try:
            with undisturbed(model, device):
                found = function(step, model)
        except Exception as error:  # anybody's code
            raise RunError(
                f"periodic: {name} failed at step {step} ({type(error).__name__}: {first_line(error)}); mend it, and "
                f"make the same call to resume"
            ) from error
        return _numbers(found, name)

    return measure


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluate a model; gradients, modes and all random generators are as before on exit."""
    python, numpy = random.getstate(), np.random.get_state()
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(cuda), evaluating(model):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        model.zero_grad(set_to_none=True)


def _numbers(found: Any, name: str) -> dict[str, float]:
    if found is None:
        return {}
    try:
        numbers = {key: float(value) for key, value in found.items()}
    except (AttributeError, TypeError, ValueError):
        numbers = {0: 0.0}
    if not all(isinstance(key, str) for key in numbers):
        raise RunError(f"periodic: {name} returned {shown(found)}; expected a dict of numbers, such as {{'knn': 0.5}}")
    if taken := sorted(numbers.keys() & _TAKEN):
        raise RunError(f"periodic: {name} returned {taken[0]!r}, which fastmim logs itself; expected another name")
    return numbers
