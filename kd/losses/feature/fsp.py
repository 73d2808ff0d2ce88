"""FSP: match the flow from one stage to the next. Yim et al., A Gift from Knowledge Distillation, 2017."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kd.batch import Batch, Facts, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.feature.maps import last_stages, pooled, stage_needs
from kd.tensors import expect, pair


def fsp(student_pair: Sequence[Tensor], teacher_pair: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the flow between a pair of maps, (N, C1, H, W) and (N, C2, H', W'), of both nets.

    The flow of a pair is, for each sample, the (C1, C2) matrix of the means over space of the products of their
    channels; within a pair the larger map is average-pooled to the smaller before. Sizes may differ between the nets.
    """
    maps = *student_pair, *teacher_pair
    fits = len(student_pair) == len(teacher_pair) == 2 and all(x.dim() == 4 for x in maps)
    fits = fits and all(ours.shape[:2] == theirs.shape[:2] for ours, theirs in zip(maps, maps[2:], strict=False))
    fits = fits and len(maps[0]) == len(maps[1])
    expect(fits, "two (N, C, H, W) maps of student and teacher each, of the same N and C", *maps)
    pairs = [pair(ours, theirs) for ours, theirs in zip(student_pair, teacher_pair, strict=True)]
    ours, theirs = (_flow(first, last) for first, last in zip(*pairs, strict=True))
    return F.mse_loss(ours, theirs)


def _flow(first: Tensor, last: Tensor) -> Tensor:
    size = min(first.shape[2], last.shape[2]), min(first.shape[3], last.shape[3])
    first, last = (pooled(x, size).flatten(2) for x in (first, last))
    return first @ last.transpose(1, 2) / first.shape[2]


class FSP(Loss):
    """The sum of `fsp` over pairs of consecutive stages, of the last four of both nets by default.

    In the paper with weight 1 in an initial phase of its own, followed by cross-entropy alone. Student and teacher must
    have the same widths.
    """

    def __init__(self, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.stages, self.needs = stages, stage_needs("FSP", stages, least=2)

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.stages = self.stages or last_stages(4, student, teacher)
        if len(self.stages) < 2:
            raise InputError("FSP.stages", self.stages, "a flow needs two stages in both nets")
        for i in self.stages:
            ours, theirs = student.stages[i][0], teacher.stages[i][0]
            if ours != theirs:
                raise InputError("FSP.stages", i, f"the student has {ours} channels there and the teacher {theirs}")

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert self.stages is not None
        flows = itertools.pairwise(self.stages)
        sides = student.stages, teacher.stages
        return torch.stack([fsp(*((maps[i], maps[j]) for maps in sides)) for i, j in flows]).sum()
