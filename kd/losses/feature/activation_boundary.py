"""AB: be active where the teacher is. Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed
by Hidden Neurons, 2019."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd.batch import Batch, Facts, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.feature.maps import connectors, last_stages, same_size, stage_needs
from kd.tensors import expect


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Sum over elements of (s + m)²·1(s > -m, t ≤ 0) + (s - m)²·1(s ≤ m, t > 0), divided by N; m is the margin.

    s and t are (N, C, H, W) maps before their activation. Of maps of unequal size the larger one is average-pooled to
    the smaller before.
    """
    fits = student.dim() == teacher.dim() == 4 and student.shape[:2] == teacher.shape[:2]
    expect(fits, "(N, C, H, W) maps of the same N samples and C channels", student, teacher)
    ours, theirs = same_size(student, teacher)
    short = torch.where(theirs > 0, margin - ours, margin + ours).relu()  # of the margin, on the teacher's side
    return short.square().sum() / len(ours)


class AB(Loss):
    """`activation_boundary` summed over stages, the last three of both nets by default, before their activation.

    The last stage weighs 1, each before it half of the next. The student's maps pass a 1x1 convolution and a BatchNorm
    that train along. In the paper with weight 3/1000 in an initial phase of its own, followed by cross-entropy alone.
    """

    def __init__(self, stages: Sequence[int] | None = None, margin: float = 1.0) -> None:
        super().__init__()
        if margin <= 0:
            raise InputError("AB.margin", margin, "must be above 0")
        self.margin = margin
        self.stages, self.needs = stages, stage_needs("AB", stages, before=True)

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.stages = self.stages or last_stages(3, student, teacher)
        self.connectors = connectors(self.stages, student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert self.stages is not None
        total = student.logits.new_zeros(())
        for i, connector in zip(self.stages, self.connectors, strict=True):
            total = total / 2 + activation_boundary(connector(student.before[i]), teacher.before[i], self.margin)
        return total
