"""Random numbers as pure functions of (seed, epoch, image): the same on every device, worker and rank.

No random state is ever stored. A *key* identifies an image in one epoch; crop, flip and mask are functions of
the key, so neither the number of workers, nor the order in which they finish, nor an interruption can change
them. The mixing function is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014) in wrapping int64 arithmetic, which gives the same bits in eager and compiled code
on CPU and GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_64_BITS = (1 << 64) - 1
_ROUNDS = 6


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 -> int64, a bijection whose output bits all depend on all input bits."""
    # `>>` on int64 copies the sign bit; the masks turn it into the logical shift of SplitMix64.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def image_keys(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Compute the key of each image in an epoch.

    Args:
        seed: The run's seed, any 63-bit integer.
        epoch: Pass over the data, from 0.
        indices: (B,) int64, positions in the source.

    Returns:
        (B,) int64 keys on the device of `indices`.
    """
    stream = step_seed(seed, epoch)
    return _mix(_mix(indices + stream) + _GAMMA)


def copy_keys(keys: Tensor, num: int) -> Tensor:
    """Keys for `num` differently masked copies of each image, the first of which has the image's own key.

    Returns:
        (B * num,) int64, the copies of an image side by side.
    """
    copies = torch.arange(num, device=keys.device, dtype=torch.int64)
    further = _mix((keys ^ _GAMMA)[:, None] ^ copies)  # xor for the reason given in `uniform`
    return torch.where(copies > 0, further, keys[:, None]).flatten()


def step_seed(seed: int, *counters: int) -> int:
    """Compute a 63-bit generator seed from the run's seed and counters such as (step, rank)."""
    # Plain integers, because torch takes 30 times longer for single numbers and this runs at every step.
    x = seed
    for counter in counters:
        x = _mix_int((x * 3 + _GAMMA + _mix_int(counter + _MIX_1)) & _64_BITS)
    return x & (_64_BITS >> 1)


def _mix_int(x: int) -> int:
    """`_mix` for one number, 0 <= result < 2**64."""
    x &= _64_BITS
    x = ((x ^ (x >> 30)) * _MIX_1) & _64_BITS
    x = ((x ^ (x >> 27)) * _MIX_2) & _64_BITS
    return x ^ (x >> 31)


def uniform(keys: Tensor, num: int, *, stream: int = 0) -> Tensor:
    """Draw `num` uniform numbers for each key.

    Args:
        keys: (B,) int64 from `image_keys`.
        num: Numbers per key.
        stream: Selects one of the key's independent streams (one for crops, one for masks, ...).

    Returns:
        (B, num) float32 in [0, 1), multiples of 2**-24.
    """
    counters = torch.arange(1, num + 1, device=keys.device, dtype=torch.int64)  # the stream is in the upper 32 bits
    # xor instead of the usual multiply-and-add, and the stream xored to the keys instead of added to the counters: the
    # compiler folds arithmetic on `arange` into an index expression, where numbers above 2**31 fail or overflow.
    bits = _mix(_mix((keys ^ (stream << 32))[:, None] ^ counters) + _GAMMA)
    return ((bits >> 40) & ((1 << 24) - 1)).to(torch.float32) * 2.0**-24


def permuted(positions: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Where a random permutation of 0 to num - 1 takes these positions, without the permutation's list.

    A balanced Feistel network (Luby and Rackoff, SIAM J. Comput. 1988) of six rounds permutes the smallest power of 4
    that holds `num`; results of `num` or more are permuted again until they are below it (Black and Rogaway, "Ciphers
    with arbitrary finite domains", CT-RSA 2002), less than four times on average.

    Args:
        positions: int64, 0 to `num` - 1, of any shape.
        num: Size of the domain, up to 2**62.
        seed: Selects the permutation.

    Returns:
        int64 of the same shape; different positions have different results.
    """
    half = np.uint64(max(1, -(-(num - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(_mix_int(seed + number * _GAMMA)) for number in range(1, _ROUNDS + 1)]
    found = positions.astype(np.uint64)
    outside = np.ones(found.shape, dtype=bool)  # not yet permuted into the domain
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix_array(right ^ key) & mask)
        found[outside] = (left << half) | right
        outside = found >= np.uint64(num)
    return found.astype(np.int64)


def _mix_array(x: np.ndarray) -> np.ndarray:
    """`_mix` for uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1 & _64_BITS)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2 & _64_BITS)
    return x ^ (x >> np.uint64(31))
