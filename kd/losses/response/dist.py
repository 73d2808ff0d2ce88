"""DIST: correlate with the teacher instead of matching it. Huang et al., Knowledge Distillation from A Stronger
Teacher, 2022."""

from __future__ import annotations

from torch import Tensor

from kd.batch import Batch, Needs, Outputs
from kd.errors import InputError
from kd.loss import Loss
from kd.tensors import expect, pair


def dist(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> Tensor:
    """T²·(beta·inter + gamma·intra), of (N, C) logits each.

    Of softmax(logits / T), inter is 1 less the mean Pearson correlation of the N rows, intra that of the C columns. The
    product of norms has 1e-8 added to it, so that what is constant correlates by 0.
    """
    fits = student.dim() == 2 and student.shape == teacher.shape
    expect(fits, "(N, C) logits of student and teacher alike", student, teacher)
    ours, theirs = ((logits / temperature).softmax(1) for logits in pair(student, teacher))
    inter, intra = 1 - _correlation(ours, theirs), 1 - _correlation(ours.T, theirs.T)
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Mean Pearson correlation of the rows."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()


class DIST(Loss):
    """`dist` on the logits of the whole batch. In the paper beside cross-entropy with weight 2; T = 1 on ImageNet.

    `beta` weighs the relations of classes within a sample, `gamma` those of samples within a class.
    """

    needs = Needs(gathered=True)

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__()
        for name, weight in (("beta", beta), ("gamma", gamma)):
            if weight < 0:
                raise InputError(f"DIST.{name}", weight, "must be 0 or above")
        if temperature <= 0:
            raise InputError("DIST.temperature", temperature, "must be above 0")
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return dist(student.logits, teacher.logits, self.beta, self.gamma, self.temperature)
