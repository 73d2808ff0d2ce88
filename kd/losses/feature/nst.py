"""NST: match the distribution of channels. Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity
Transfer, 2017."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kd.batch import Batch, Facts, Outputs, Ports
from kd.loss import Loss
from kd.losses.feature.maps import last_stages, same_size, stage_needs
from kd.tensors import expect


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the channels of a (N, Cs, H, W) and of a (N, Ct, H', W') map, batch mean.

    mean k(t, t) + mean k(s, s) - 2·mean k(s, t) over pairs of channels, with the polynomial kernel k(a, b) = (a·b)² of
    channels flattened over space and divided by their L2 norm. Of maps of unequal size the larger one is
    average-pooled to the smaller before.
    """
    fits = student.dim() == teacher.dim() == 4 and len(student) == len(teacher)
    expect(fits, "(N, C, H, W) maps of the same N samples", student, teacher)
    ours, theirs = (F.normalize(x.flatten(2), dim=2) for x in same_size(student, teacher))
    return _kernel(theirs, theirs) + _kernel(ours, ours) - 2 * _kernel(ours, theirs)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean over samples and pairs of channels, (N, C, H·W) each."""
    return (a @ b.transpose(1, 2)).square().mean()


class NST(Loss):
    """The sum of `nst` over stages, the last three of both nets by default.

    In the paper on the last one alone; the CIFAR recipe takes all, beside cross-entropy with weight 50.
    """

    def __init__(self, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.stages, self.needs = stages, stage_needs("NST", stages)

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.stages = self.stages or last_stages(3, student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert self.stages is not None
        return torch.stack([nst(student.stages[i], teacher.stages[i]) for i in self.stages]).sum()
