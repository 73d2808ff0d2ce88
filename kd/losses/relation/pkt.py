"""PKT: match the probability that one sample picks another as its neighbour. Passalis and Tefas, Learning Deep
Representations with Probabilistic Knowledge Transfer, 2018."""

from __future__ import annotations

import torch
from torch import Tensor

from kd.batch import Batch, Needs, Outputs
from kd.errors import InputError
from kd.loss import Loss
from kd.tensors import expect, pair


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Mean over all N² pairs of t·log((t + eps) / (s + eps)), of (N, Ds) and (N, Dt) embeddings.

    s and t are rows of the similarities (cosine + 1) / 2, divided by their sum; eps is also added to the norms in the
    cosine.
    """
    fits = student.dim() == teacher.dim() == 2 and len(student) == len(teacher)
    expect(fits, "(N, D) embeddings of the same N samples", student, teacher)
    student, teacher = pair(student, teacher)
    ours, theirs = _neighbours(student, eps), _neighbours(teacher, eps)
    return (theirs * ((theirs + eps) / (ours + eps)).log()).mean()


def _neighbours(x: Tensor, eps: float) -> Tensor:
    x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + eps)
    similar = ((x @ x.T + 1) / 2).clamp(min=0)  # rounding takes a cosine below -1, and the logarithm with it
    return similar / similar.sum(1, keepdim=True)


class PKT(Loss):
    """`pkt` on the embeddings of the whole batch. In the CIFAR recipe beside cross-entropy with weight 30000."""

    needs = Needs(embedding=True, gathered=True)

    def __init__(self, eps: float = 1e-7) -> None:
        super().__init__()
        if eps <= 0:
            raise InputError("PKT.eps", eps, "must be above 0")
        self.eps = eps

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        return pkt(student.embedding, teacher.embedding, self.eps)
