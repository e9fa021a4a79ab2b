"""RandAugment (Cubuk et al., arXiv 1909.13719) as a function of the image's key."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastmim.errors import RequestError
from fastmim.randomness import step_seed

_STREAM = 7
_POLICY = re.compile(r"rand(-((m|n|p|mstd|mmax|inc)[0-9.]+|t[a-z0-9]+))+")


class RandAugment:
    """timm's RandAugment on uint8 crops, for `loader.load(transform=...)`.

    Args:
        policy: In timm's notation: "rand-m9-mstd0.5-inc1" is magnitude 9 of 10 with a standard deviation of 0.5,
            two operations, each stronger at a higher magnitude.
        fill: RGB in [0, 1] of the area that a rotation or a shift uncovers.

    Raises:
        RequestError: The policy is not in timm's notation.
    """

    def __init__(self, policy: str, *, fill: Sequence[float]) -> None:
        self.policy, self.fill = policy, tuple(fill)
        try:
            if not _POLICY.fullmatch(policy):  # timm ignores parts that it does not understand
                raise ValueError("not RandAugment")
            _ = self._transform
        except (ValueError, AssertionError) as error:
            raise RequestError(
                f"randaugment is {policy!r}; expected a policy as timm writes it, such as rand-m9-mstd0.5-inc1, or none"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"policy": self.policy, "fill": self.fill}

    @cached_property
    def _transform(self) -> Any:
        from timm.data.auto_augment import rand_augment_transform

        fill = tuple(min(255, round(255 * value)) for value in self.fill)
        # Without the last entry timm would draw bilinear or bicubic; MAE and FastMIM fine-tune with bicubic.
        options = {"translate_pct": 0.45, "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
        transform = rand_augment_transform(self.policy, options)
        keep_a_bit(transform)
        return transform

    @cached_property
    def _generator(self) -> np.random.RandomState:
        return np.random.RandomState()

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """uint8 (3, S, S) -> uint8 (3, S, S); fastest if a pixel's three values are neighbours in memory."""
        seed = step_seed(key, _STREAM)
        self._generator.seed(seed & 0xFFFFFFFF)
        # As timm draws them, but from a generator of our own: NumPy takes long to save and restore the global one.
        transform = self._transform
        drawn = self._generator.choice(
            len(transform.ops),
            transform.num_layers,
            replace=transform.choice_weights is None,
            p=transform.choice_weights,
        )
        changed = Image.fromarray(image.permute(1, 2, 0).numpy())
        with _seeded(seed):
            for number in drawn:
                changed = transform.ops[number](changed)
        return torch.stack([torch.from_numpy(np.array(channel)) for channel in changed.split()])


def keep_a_bit(transform: Any) -> None:
    """Let timm's RandAugment posterise to one bit at least; at the highest level it keeps 0, which Pillow rejects."""
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):
            operation.level_fn = _at_least_one_bit(operation.level_fn)


def _at_least_one_bit(level_fn: Callable[..., tuple[int, ...]]) -> Callable[..., tuple[int, ...]]:
    return lambda level, hparams: (max(1, level_fn(level, hparams)[0]),)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's global generator, from which timm's operations draw, and restore it afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
