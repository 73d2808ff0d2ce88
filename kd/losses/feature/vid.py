"""VID: keep the information about the teacher's maps. Ahn et al., Variational Information Distillation for Knowledge
Transfer, 2019."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Batch, Facts, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.feature.maps import last_stages, same_size, stage_needs
from kd.tensors import expect, pair, widen

_LEAST_VARIANCE = 1e-5


def vid(student_mean: Tensor, teacher: Tensor, log_scale: Tensor) -> Tensor:
    """Mean over all elements of ½·((μ - t)² / σ² + log σ²), of (N, C, H, W) maps alike, without its constant ½·log 2π.

    μ is what the student predicts the teacher's map t to be, and σ² = softplus(log_scale) + 1e-5 the variance of each
    of the C channels. Gradients reach μ and `log_scale`.
    """
    fits = student_mean.dim() == 4 and student_mean.shape == teacher.shape and log_scale.shape == teacher.shape[1:2]
    expect(fits, "(N, C, H, W) maps alike and a (C,) log scale", student_mean, teacher, log_scale)
    mean, teacher = pair(student_mean, teacher)
    variance = (F.softplus(widen(log_scale)) + _LEAST_VARIANCE).to(mean.dtype).view(-1, 1, 1)
    return 0.5 * ((mean - teacher).square() / variance + variance.log()).mean()


class VID(Loss):
    """The sum of `vid` over stages, the last three of both nets by default.

    Two hidden 1x1 convolutions with BatchNorm and ReLU and one without predict the teacher's map of each stage; they
    train along with the `log_scale` of each of its channels, whose variance starts at `variance`. In the paper beside
    cross-entropy with weight 1. The loss may be negative.
    """

    def __init__(self, stages: Sequence[int] | None = None, variance: float = 5.0) -> None:
        super().__init__()
        if variance <= _LEAST_VARIANCE:
            raise InputError("VID.variance", variance, f"must be above {_LEAST_VARIANCE}")
        self.variance = variance
        self.stages, self.needs = stages, stage_needs("VID", stages)

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.stages = self.stages or last_stages(3, student, teacher)
        widths = [(student.stages[i][0], teacher.stages[i][0]) for i in self.stages]
        self.means = nn.ModuleList(_mean(ours, theirs) for ours, theirs in widths)
        # softplus(rho) = v where rho = log(exp(v) - 1), written so that a large v does not overflow
        above = self.variance - _LEAST_VARIANCE
        scale = above + math.log(-math.expm1(-above))
        self.log_scales = nn.ParameterList(torch.full((theirs,), scale) for _, theirs in widths)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert self.stages is not None
        losses = []
        for i, mean, log_scale in zip(self.stages, self.means, self.log_scales, strict=True):
            ours, theirs = same_size(student.stages[i], teacher.stages[i])
            losses.append(vid(mean(ours), theirs, log_scale))
        return torch.stack(losses).sum()


def _mean(source: int, target: int) -> nn.Sequential:
    hidden = [
        [nn.Conv2d(width, target, 1, bias=False), nn.BatchNorm2d(target), nn.ReLU()] for width in (source, target)
    ]
    return nn.Sequential(*hidden[0], *hidden[1], nn.Conv2d(target, target, 1, bias=False))
