"""What losses on similarities share: vectors of length 1."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(x: Tensor) -> Tensor:
    """`x` over its L2 norm along the last axis; zeros stay.

    No small number takes the place of a norm of 0: divided by it, the gradient of zeros would explode.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)
