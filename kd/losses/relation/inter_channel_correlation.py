"""ICKD: match how channels go together. Liu et al., Exploring Inter-Channel Correlation for Diversity-Preserved
Knowledge Distillation, 2021."""

from __future__ import annotations

from torch import Tensor

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.loss import Loss
from kd.losses.feature.maps import connectors
from kd.losses.relation.rows import unit_rows
from kd.tensors import expect, pair


def inter_channel_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_n ‖G_s - G_t‖²_F / (C·N) of (N, C, H, W) maps of the same N and C; their spatial sizes may differ (ICKD-C).

    G = F·Fᵀ, (C, C), of the channels of a sample flattened to rows of F, each row then divided by its L2 norm. A
    channel of zeros has a row of zeros.
    """
    fits = student.dim() == teacher.dim() == 4 and student.shape[:2] == teacher.shape[:2]
    expect(fits, "(N, C, H, W) maps of the same N samples and C channels", student, teacher)
    student, teacher = pair(student, teacher)
    gap = _correlations(student) - _correlations(teacher)
    return gap.square().sum() / (student.shape[0] * student.shape[1])


def _correlations(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return unit_rows(flat @ flat.transpose(1, 2))


class ICKD(Loss):
    """`inter_channel_correlation` on a stage map, the last one by default.

    The student's passes a 1x1 convolution and a BatchNorm to the width of the teacher's, that train along. In the
    authors' CIFAR recipe beside cross-entropy with weight 2.5.
    """

    def __init__(self, stage: int = -1) -> None:
        super().__init__()
        self.stage = stage
        self.needs = Needs(stages=(stage,))

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        (self.connector,) = connectors([self.stage], student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return inter_channel_correlation(self.connector(student.stages[self.stage]), teacher.stages[self.stage])
