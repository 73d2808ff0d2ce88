"""CAT-KD: look for each class where the teacher looks. Guo et al., Class Attention Transfer Based Knowledge
Distillation, 2023."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.feature.maps import pooled
from kd.losses.relation.rows import unit_rows
from kd.tensors import expect, pair


def class_attention(student_cam: Tensor, teacher_cam: Tensor, pool: int = 2, normalize: bool = False) -> Tensor:
    """Mean squared difference of class activation maps, (N, C, H, W) and (N, C, H', W'), average-pooled to pool x pool.

    `normalize` divides each of the C pooled maps of a sample by its L2 norm; one of zeros stays zero.
    """
    fits = student_cam.dim() == teacher_cam.dim() == 4 and student_cam.shape[:2] == teacher_cam.shape[:2]
    expect(fits, "(N, C, H, W) maps of the same N samples and C classes", student_cam, teacher_cam)
    ours, theirs = (pooled(cam, (pool, pool)) for cam in pair(student_cam, teacher_cam))
    if normalize:
        ours, theirs = unit_rows(ours.flatten(2)), unit_rows(theirs.flatten(2))
    return F.mse_loss(ours, theirs)


class CATKD(Loss):
    """`class_attention` between what the classifiers, as 1x1 convolutions without bias, make of the final maps.

    So the classifier of the student learns from it too. Both nets must average their final map and classify it by a
    linear layer. In the paper beside cross-entropy with weight 0.7 (ResNet-20), 15 (ResNet-8x4), 12 (WRN-16-2) or,
    normalised and pooled to 4x4, 600 (ShuffleNetV2).
    """

    needs = Needs(classifier=True, final=True)

    def __init__(self, pool: int = 2, normalize: bool = False) -> None:
        super().__init__()
        if pool < 1:
            raise InputError("CATKD.pool", pool, "must be 1 or more")
        self.pool, self.normalize = pool, normalize

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        for side, ports in (("student", student), ("teacher", teacher)):
            final_classifier(f"CATKD.{side}", ports)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return class_attention(_activation(student), _activation(teacher), self.pool, self.normalize)


def final_classifier(name: str, ports: Ports) -> tuple[tuple[int, int, int], tuple[Tensor, Tensor]]:
    """Shape of the map that is averaged, weight and bias of its classifier. Raises InputError where there is none."""
    if ports.final is None or ports.classifier is None:
        what = "no average of a map" if ports.final is None else "no linear layer"
        raise InputError(name, f"classifies by {what}", "must average a map and classify it by a linear layer")
    return ports.final, ports.classifier


def _activation(outputs: Outputs) -> Tensor:
    """(N, classes, H, W)."""
    return torch.einsum("nchw,kc->nkhw", outputs.extra["final"], outputs.extra["classifier"])
