"""AT: look where the teacher looks. Zagoruyko and Komodakis, Paying More Attention to Attention, 2017."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kd.batch import Batch, Facts, Outputs, Ports
from kd.loss import Loss
from kd.losses.feature.maps import last_stages, same_size, stage_needs
from kd.tensors import expect


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention of a (N, Cs, H, W) and of a (N, Ct, H', W') map.

    Attention is the mean of the squares over channels, flattened and divided by its L2 norm; of a map of zeros it is
    zero. Of maps of unequal size the larger one is average-pooled to the smaller before.
    """
    fits = student.dim() == teacher.dim() == 4 and len(student) == len(teacher)
    expect(fits, "(N, C, H, W) maps of the same N samples", student, teacher)
    ours, theirs = same_size(student, teacher)
    return F.mse_loss(_attention(ours), _attention(theirs))


def _attention(x: Tensor) -> Tensor:
    return F.normalize(x.square().mean(1).flatten(1))


class AT(Loss):
    """The sum of `attention_transfer` over stages, the last three of both nets by default.

    In the paper beside cross-entropy with weight 1000.
    """

    def __init__(self, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.stages, self.needs = stages, stage_needs("AT", stages)

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.stages = self.stages or last_stages(3, student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert self.stages is not None
        return torch.stack([attention_transfer(student.stages[i], teacher.stages[i]) for i in self.stages]).sum()
