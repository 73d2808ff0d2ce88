"""RKD: keep distances and angles between samples. Park et al., Relational Knowledge Distillation, 2019."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd.batch import Batch, Needs, Outputs
from kd.errors import InputError
from kd.loss import Loss
from kd.tensors import expect, pair

_NEAREST = 1e-6  # the root of the floor of squared distances, 1e-12


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the pairwise distances of (N, Ds) and (N, Dt) embeddings, each over its mean.

    The mean is over distinct samples, the loss over all N² pairs.
    """
    _expect_embeddings(student, teacher, 2)
    student, teacher = pair(student, teacher)
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the cosines of the angles of all N³ triples of (N, Ds) and (N, Dt) embeddings.

    Takes O(N²·(N + D)) memory.
    """
    _expect_embeddings(student, teacher, 1)
    student, teacher = pair(student, teacher)
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _expect_embeddings(student: Tensor, teacher: Tensor, least: int) -> None:
    fits = student.dim() == teacher.dim() == 2 and len(student) == len(teacher) >= least
    expect(fits, f"(N, D) embeddings of the same N samples, {least} or more", student, teacher)


def _distances(x: Tensor) -> Tensor:
    # not by the Gram matrix, which loses small distances between large embeddings
    lengths = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=_NEAREST)
    lengths = lengths * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return lengths * (len(x) * (len(x) - 1) / lengths.sum())


def _cosines(x: Tensor) -> Tensor:
    """[i, j, k]: cosine of the angle at sample i between the directions to j and k."""
    directions = F.normalize(x[None] - x[:, None], dim=2, eps=_NEAREST)
    return directions @ directions.transpose(1, 2)


class RKD(Loss):
    """`distance`·`rkd_distance` + `angle`·`rkd_angle` on the embeddings of the whole batch.

    The two weights set one part against the other and so belong to the loss; its weight in an objective scales both.
    """

    needs = Needs(embedding=True, gathered=True)

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        for name, weight in (("distance", distance), ("angle", angle)):
            if weight < 0:
                raise InputError(f"RKD.{name}", weight, "must be 0 or above")
        self.distance, self.angle = distance, angle

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        distance = rkd_distance(student.embedding, teacher.embedding)
        return self.distance * distance + self.angle * rkd_angle(student.embedding, teacher.embedding)
