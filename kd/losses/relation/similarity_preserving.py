"""SP: samples that are alike to the teacher shall be alike to the student. Tung and Mori, Similarity-Preserving
Knowledge Distillation, 2019."""

from __future__ import annotations

from torch import Tensor

from kd.batch import Batch, Needs, Outputs
from kd.loss import Loss
from kd.losses.relation.rows import unit_rows
from kd.tensors import expect, pair


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_s - G_t‖²_F / N² of maps or embeddings of the same N samples, (N, ...) each; all other axes may differ.

    G = F·Fᵀ, (N, N), of the samples flattened to rows of F, each row then divided by its L2 norm. A sample of zeros
    has a row of zeros.
    """
    fits = student.dim() >= 2 and teacher.dim() >= 2 and len(student) == len(teacher)
    expect(fits, "maps or embeddings (N, ...) of the same N samples", student, teacher)
    student, teacher = pair(student, teacher)
    return (_similarities(student) - _similarities(teacher)).square().sum() / len(student) ** 2


def _similarities(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return unit_rows(flat @ flat.T)


class SP(Loss):
    """`similarity_preserving` on a stage map of the whole batch, the last one by default.

    In the paper beside cross-entropy with weight 3000.
    """

    def __init__(self, stage: int = -1) -> None:
        super().__init__()
        self.stage = stage
        self.needs = Needs(stages=(stage,), gathered=True)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return similarity_preserving(student.stages[self.stage], teacher.stages[self.stage])
