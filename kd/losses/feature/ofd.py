"""OFD: match maps before their activation, where the teacher's say something. Heo et al., A Comprehensive Overhaul of
Feature Distillation, 2019."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kd.batch import Batch, Facts, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.feature.maps import connectors, last_stages, same_size, stage_needs
from kd.tensors import expect, widen


def ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Sum over elements of (s - t')² where s > t' or t' > 0, divided by N, of (N, C, H, W) maps before activation.

    t' = max(t, margin), with a negative (C,) margin for each channel: below it the student may be what it will. Of maps
    of unequal size the larger one is average-pooled to the smaller before.
    """
    fits = student.dim() == teacher.dim() == 4 and student.shape[:2] == teacher.shape[:2]
    fits = fits and margin.shape == teacher.shape[1:2]
    expect(fits, "(N, C, H, W) maps of the same N samples and C channels, and a (C,) margin", student, teacher, margin)
    ours, theirs = same_size(student, teacher)
    theirs = theirs.maximum(margin.detach().to(theirs.dtype).view(-1, 1, 1))
    counts = (ours > theirs) | (theirs > 0)
    return ((ours - theirs).square() * counts).sum() / len(ours)


def ofd_margin(bn_weight: Tensor, bn_bias: Tensor) -> Tensor:
    """(C,) margins from the weight and the bias of a BatchNorm, (C,) each: the mean of what a ReLU after it cuts off.

    The expectation of x below 0 where x is normal with σ = |weight| and μ = bias:
    μ - σ·exp(-(μ/σ)²/2) / (√(2π)·Φ(-μ/σ)), and -3σ where Φ(-μ/σ) ≤ 0.001. A weight of 0 gives 0, whatever the bias.
    """
    expect(bn_weight.dim() == 1 and bn_weight.shape == bn_bias.shape, "(C,) weight and bias", bn_weight, bn_bias)
    deviation, mean = widen(bn_weight).abs(), widen(bn_bias)
    divisor = torch.where(deviation > 0, deviation, 1.0)
    below = torch.special.ndtr(-mean / divisor)
    density = torch.exp(-(mean / divisor).square() / 2) / math.sqrt(2 * math.pi)
    rare = (below <= 0.001) | (deviation == 0)
    return torch.where(rare, -3 * deviation, mean - deviation * density / below.clamp(min=0.001))


class OFD(Loss):
    """`ofd` summed over stages, the last three of both nets by default, before their activation.

    The last stage weighs 1, each before it half of the next. The student's maps pass a 1x1 convolution and a BatchNorm
    that train along; margins come from the teacher's BatchNorm of each stage. In the paper beside cross-entropy with
    weight 1/1000, on ImageNet 1/10000.
    """

    def __init__(self, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.stages, self.needs = stages, stage_needs("OFD", stages, before=True)

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.stages = self.stages or last_stages(3, student, teacher)
        self.connectors = connectors(self.stages, student, teacher)
        for number, stage in enumerate(self.stages):
            norm = teacher.norms[stage] if teacher.norms else None
            if norm is None:
                raise InputError("OFD.stages", stage, "the teacher's map comes from no BatchNorm to take margins from")
            self.register_buffer(f"margin{number}", ofd_margin(*norm))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert self.stages is not None
        total = student.logits.new_zeros(())
        for number, (i, connector) in enumerate(zip(self.stages, self.connectors, strict=True)):
            margin = self.get_buffer(f"margin{number}")
            total = total / 2 + ofd(connector(student.before[i]), teacher.before[i], margin)
        return total
