"""Slimming: shrink the scales of norms, so that channels which matter little can be told and pruned. Liu et al.,
Learning Efficient Convolutional Networks through Network Slimming, 2017."""

from __future__ import annotations

from torch import Tensor

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss


class Slimming(Loss):
    """Sum of the absolute scales of the student's norms: a penalty on the model, which hears no teacher.

    In the paper beside cross-entropy with weight 1e-4 (VGG) or 1e-5 (ResNet, DenseNet). `compress.Prune` with the
    importance "bn" then takes out the channels whose scales it left near zero.
    """

    needs = Needs(scales=True)

    @property
    def asks(self) -> Needs:
        return Needs()

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        if not student.scales:
            raise InputError("Slimming.student", "has no norm with a scale", "there must be scales to shrink")

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return student.extra["scales"].abs().sum()
