"""CTKD: KD at a temperature that learns to make it harder. Li et al., Curriculum Temperature for Knowledge
Distillation, 2023."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kd.batch import Batch, Clock, Outputs
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.response.kd import kd


class CTKD(Loss):
    """`kd` on the logits, at T = lowest + span·sigmoid(theta), one theta for all samples (the paper's global form).

    theta climbs the loss that the student descends: its gradient is reversed and scaled by λ, which rises from 0 to
    `reversal` over the first `ramp` epochs as half a cosine. In the paper with weight 0.9 beside 0.1 of cross-entropy.
    """

    def __init__(self, lowest: float = 1.0, span: float = 20.0, reversal: float = 1.0, ramp: int = 10) -> None:
        super().__init__()
        if lowest <= 0:
            raise InputError("CTKD.lowest", lowest, "must be above 0")
        for name, value in (("span", span), ("reversal", reversal), ("ramp", ramp)):
            if value < 0:
                raise InputError(f"CTKD.{name}", value, "must be 0 or above")
        self.lowest, self.span, self.reversal, self.ramp = lowest, span, reversal, ramp
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return kd(student.logits, teacher.logits, self.temperature(batch.clock))

    def temperature(self, clock: Clock) -> Tensor:
        """The temperature at present, whose gradient reaches `theta` reversed."""
        # epochs count from 1, as in the authors' code: the first one learns already
        done = min((clock.epoch + 1) / self.ramp, 1.0) if self.ramp else 1.0
        theta = _reversed(self.theta, self.reversal * (1 - math.cos(math.pi * done)) / 2)
        return self.lowest + self.span * theta.sigmoid()


def _reversed(x: Tensor, strength: float) -> Tensor:
    """x, with a gradient of -strength times its own."""
    return x.detach() - strength * (x - x.detach())
