"""CC: match the kernel matrix of a batch. Peng et al., Correlation Congruence for Knowledge Distillation, 2019."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.relation.rows import unit_rows
from kd.tensors import expect, pair


def correlation_congruence(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Σ_ij (K^s - K^t)² / N² of the Gram matrices of two (N, D) embeddings.

    The kernel is the Gaussian exp(-gamma·‖x_i - x_j‖²) of the embeddings over their L2 norm, its Taylor series cut
    after `order`: K_ij = exp(-2·gamma)·Σ_{p = 0..order} (2·gamma)^p / p!·(x_i·x_j)^p.
    """
    expect(student.dim() == 2 and student.shape == teacher.shape, "two (N, D) embeddings alike", student, teacher)
    student, teacher = pair(student, teacher)
    return F.mse_loss(_kernel(student, gamma, order), _kernel(teacher, gamma, order))


def _kernel(x: Tensor, gamma: float, order: int) -> Tensor:
    x = unit_rows(x)
    cosines = x @ x.T
    terms = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)


class CC(Loss):
    """`correlation_congruence` on the embeddings of the whole batch.

    The student's first pass a linear layer to the width of the teacher's, that trains along. The weight of 0.02 in the
    CIFAR recipe is that of another, simplified formula.
    """

    needs = Needs(embedding=True, gathered=True)

    def __init__(self, gamma: float = 0.4, order: int = 2) -> None:
        super().__init__()
        if gamma <= 0:
            raise InputError("CC.gamma", gamma, "must be above 0")
        if order < 1:
            raise InputError("CC.order", order, "must be 1 or above")
        self.gamma, self.order = gamma, order

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.embed = nn.Linear(student.embedding, teacher.embedding)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        return correlation_congruence(self.embed(student.embedding), teacher.embedding, self.gamma, self.order)
