"""CS-KD: a net says the same about two samples of one class. Yun et al., Regularizing Class-wise Predictions via
Self-knowledge Distillation, 2020."""

from __future__ import annotations

import torch
from torch import nn

from kd.batch import Batch, Demands, Facts, Outputs, Step
from kd.errors import InputError
from kd.losses.response.cross_entropy import cross_entropy
from kd.losses.response.kd import kd
from kd.regimes.regime import Regime
from kd.regimes.supervised import student_ports


class CSKD(Regime):
    """Trains `student` by CE + weight·T²·KL to what it says about another sample of the same class.

    Only the first half of a batch trains: the second are its partners, seen apart (with their own batch statistics) and
    without gradients. Each half is a mean over samples, so that processes gather nothing. A mixed sample has no one
    class, hence no partner: soft labels are refused.
    """

    demands = Demands(hard_labels=True, order="pairs")

    def __init__(self, student: nn.Module, weight: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__()
        if weight < 0:
            raise InputError("CSKD.weight", weight, "must be 0 or above")
        if temperature <= 0:
            raise InputError("CSKD.temperature", temperature, "must be above 0")
        self.student = student
        self.weight, self.temperature = weight, temperature

    def bind(self, data: Facts) -> None:
        student_ports(self.student, data)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        own, partners = batch.x.chunk(2)
        with torch.no_grad():
            theirs = self.student(partners)
        ours = self.student(own)
        with torch.autocast(batch.x.device.type, enabled=False):
            labels = cross_entropy(ours, batch.y[: len(own)])
            pairs = kd(ours, theirs, self.temperature)
            loss = labels + self.weight * pairs
        return Step(loss, {"cross_entropy": labels, "cs_kd": pairs}, torch.cat([ours.detach(), theirs]))

    def candidates(self) -> dict[str, nn.Module]:
        return {"student": self.student}
