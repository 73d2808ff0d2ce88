"""Loops over Python floats, for references."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def naive_log_softmax(row: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Log-softmax of one row, in Python floats."""
    top = max(row)
    total = sum(math.exp((value - top) / temperature) for value in row)
    return [(value - top) / temperature - math.log(total) for value in row]


def naive_targets(y: Tensor, classes: int) -> list[list[float]]:
    """Hard or soft labels as rows of probabilities."""
    if y.dim() == 2:
        return y.tolist()
    return [[float(c == label) for c in range(classes)] for label in y.tolist()]
