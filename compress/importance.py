"""How much the channels of a group matter: plain functions of the weights that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """What belongs to the c channels of a group.

    Attributes:
        matrices: (c, n) each: of a convolution or linear layer that makes or reads the channels, all that one has.
        scales: (c,) each: of a norm that the channels pass.
    """

    matrices: Sequence[Tensor]
    scales: Sequence[Tensor] = ()

    @property
    def channels(self) -> int:
        return len((*self.matrices, *self.scales)[0])


def l1(weights: Weights) -> Tensor:
    """(c,) sums of absolute weights (Li et al. 2017)."""
    return _total([*(matrix.abs().sum(1) for matrix in weights.matrices), *_sizes(weights)])


def l2(weights: Weights) -> Tensor:
    """(c,) Euclidean norms, summed over layers: one of zeros, as timm begins residual branches, decides nothing."""
    return _total([*(matrix.norm(dim=1) for matrix in weights.matrices), *_sizes(weights)])


def bn(weights: Weights) -> Tensor:
    """(c,) sums of the absolute scales of norms (network slimming, Liu et al. 2017); `l2` where no norm is passed."""
    return _total(_sizes(weights)) if weights.scales else l2(weights)


def random(weights: Weights, seed: int = 0) -> Tensor:
    """(c,) uniform draws from [0, 1), the same for the same seed: what any other importance has to beat."""
    return torch.rand(weights.channels, generator=torch.Generator().manual_seed(seed))


IMPORTANCES: dict[str, Callable[[Weights], Tensor]] = {"l1": l1, "l2": l2, "bn": bn, "random": random}


def _sizes(weights: Weights) -> list[Tensor]:
    return [scale.abs() for scale in weights.scales]


def _total(scores: Sequence[Tensor]) -> Tensor:
    return torch.stack([score.detach().float().cpu() for score in scores]).sum(0)
