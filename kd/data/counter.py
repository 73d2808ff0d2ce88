"""Random numbers without state: a hash of what they are for, so that order, batches and workers cannot change them."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Stream(IntEnum):
    """What a number is for. Numbers of one stream do not move when another is switched on."""

    TEST = 0
    VALIDATION = 1
    SUBSET = 2
    ORDER = 3
    CROP = 4
    FLIP = 5
    RESIZED_CROP = 6
    ERASE = 7
    PARTNER = 8
    MIX = 9
    PAIR = 10
    STRONG = 11


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts in the sign


def _mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), on int64 that wraps."""
    z = (z ^ _shift(z, 30)) * _signed(_FIRST)
    z = (z ^ _shift(z, 27)) * _signed(_SECOND)
    return z ^ _shift(z, 31)


def bits(*key: int | Tensor) -> Tensor:
    """64 random bits a key, as int64. Tensors in the key broadcast against each other."""
    state = torch.zeros((), dtype=torch.int64)
    for part in key:
        value = part if isinstance(part, Tensor) else torch.tensor(_signed(part))
        state = _mix(state + value + _signed(_GOLDEN))
    return state


def uniform(count: int, *key: int | Tensor) -> Tensor:
    """(N, count) float32 numbers in [0, 1), a row for each row of the (N,) tensors in the key.

    They have 24 bits, so that a number times n stays below n after rounding, and `(number * n).long()` is a position.
    """
    columns = [part[:, None] if isinstance(part, Tensor) else part for part in key]
    device = next((part.device for part in key if isinstance(part, Tensor)), None)
    return _shift(bits(*columns, torch.arange(count, device=device)), 40).float() / 2**24


def permutation(size: int, *key: int) -> Tensor:
    """A random order of range(size), (size,) int64."""
    return bits(*key, torch.arange(size)).argsort(stable=True)
