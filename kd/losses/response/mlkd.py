"""MLKD: align logits sample by sample, class by class and over the batch, in two views. Jin et al., Multi-Level Logit
Distillation, 2023."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd.batch import Batch, Needs, Outputs
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.response.kd import kd
from kd.tensors import expect, pair


def mlkd(
    student_weak: Tensor,
    student_strong: Tensor,
    teacher_weak: Tensor,
    teacher_strong: Tensor,
    temperatures: Sequence[float] = (2, 3, 4, 5, 6),
) -> Tensor:
    """Instance, class and batch alignment of the (N, C) logits of a weak and a strong view, summed over temperatures.

    Of each temperature T, with P = softmax(weak / T) and KL a batch mean:
    m·T²·KL(weak) + T²·KL(strong) + m_c·‖PtᵀPt - PsᵀPs‖²/C + m·‖PtPtᵀ - PsPsᵀ‖²/N.
    Of the teacher's weak probabilities at T = 1, m is the share of samples whose largest is at most the median, m_c the
    share of classes whose sum over the batch is.
    """
    views = student_weak, student_strong, teacher_weak, teacher_strong
    fits = student_weak.dim() == 2 and all(view.shape == student_weak.shape for view in views)
    expect(fits, "(N, C) logits of two views of student and teacher alike", *views)
    student_weak, teacher_weak = pair(student_weak, teacher_weak)
    probabilities = teacher_weak.softmax(1)
    samples, classes = _least_half(probabilities.amax(1)), _least_half(probabilities.sum(0))
    alignments = [
        samples * kd(student_weak, teacher_weak, t)
        + kd(student_strong, teacher_strong, t)
        + _correlations((student_weak / t).softmax(1), (teacher_weak / t).softmax(1), samples, classes)
        for t in temperatures
    ]
    return torch.stack(alignments).sum()


def _least_half(values: Tensor) -> Tensor:
    """The share of values that are at most the median: a half, or more where some are equal or their number is odd."""
    return (values <= values.median()).to(values.dtype).mean()


def _correlations(ours: Tensor, theirs: Tensor, samples: Tensor, classes: Tensor) -> Tensor:
    of_classes = (theirs.T @ theirs - ours.T @ ours).square().sum() / ours.shape[1]
    of_samples = (theirs @ theirs.T - ours @ ours.T).square().sum() / ours.shape[0]
    return classes * of_classes + samples * of_samples


class MLKD(Loss):
    """`mlkd` of a weak and a strong view. In the paper with weight 0.9 beside 0.1 of both views' cross-entropy."""

    needs = Needs(gathered=True, views=2, strong=True)

    def __init__(self, temperatures: Sequence[float] = (2, 3, 4, 5, 6)) -> None:
        super().__init__()
        if not temperatures or min(temperatures) <= 0:
            raise InputError("MLKD.temperatures", temperatures, "must be one or more, each above 0")
        self.temperatures = tuple(temperatures)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        (ours,), (theirs,) = student.others, teacher.others
        return mlkd(student.logits, ours.logits, teacher.logits, theirs.logits, self.temperatures)
