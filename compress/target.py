"""The share of a model's cost that is to be kept: what `Prune` and `LowRank` aim at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from compress.cost import macs
from kd.errors import InputError

TOLERANCE = 0.03  # how far from its target a stage may end without saying why
By = Literal["macs", "params"]
KINDS: tuple[By, ...] = get_args(By)
Shape = tuple[int, int, int]


def check(stage: str, target: float, by: str, kinds: Sequence[str] = KINDS) -> None:
    """Raises InputError for a share that is none, or of no known cost."""
    if not 0 < target < 1:
        raise InputError(f"{stage}.target", target, "must be above 0 and below 1")
    if by not in kinds:
        raise InputError(f"{stage}.by", by, f"must be {' or '.join(kinds)}")


def cost_of(model: nn.Module, shape: Shape, by: str) -> int:
    """What one (C, H, W) image costs, or what the parameters count."""
    return macs(model, shape) if by == "macs" else sum(parameter.numel() for parameter in model.parameters())
