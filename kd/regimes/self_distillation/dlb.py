"""DLB: a net agrees with what it said about the same samples one batch ago. Shen et al., Self-Distillation from the
Last Mini-Batch for Consistency Regularization, 2022."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd.batch import Batch, Demands, Facts, Outputs, Step
from kd.errors import InputError
from kd.loss import gather
from kd.losses.response.cross_entropy import cross_entropy
from kd.losses.response.kd import kd
from kd.regimes.regime import Regime
from kd.regimes.supervised import student_ports
from kd.tensors import widen


class DLB(Regime):
    """Trains `student` by CE of the whole batch + alpha·T²·KL of its first half, the one that comes again, to the
    logits of the batch before.

    What comes again is looked at in another view. A mean over the half, in which a sample that the batch before did not
    have (in the first one of an epoch, or after a step that AMP skipped) counts 0. The bank has a row a sample of the
    data; it and which rows are of the last batch are part of the state dict, and processes gather what they write, so
    that each holds all of it. Mixup and CutMix would mix the two views with different partners: they are refused.
    """

    demands = Demands(views=2, hard_labels=True, order="overlap")
    past: Tensor
    fresh: Tensor

    def __init__(self, student: nn.Module, alpha: float = 1.0, temperature: float = 3.0) -> None:
        super().__init__()
        if alpha < 0:
            raise InputError("DLB.alpha", alpha, "must be 0 or above")
        if temperature <= 0:
            raise InputError("DLB.temperature", temperature, "must be above 0")
        self.student = student
        self.alpha, self.temperature = alpha, temperature

    def bind(self, data: Facts) -> None:
        student_ports(self.student, data)
        self.register_buffer("past", torch.zeros(data.size, data.classes))
        self.register_buffer("fresh", torch.zeros(data.size, dtype=torch.bool))

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        new, again = batch.views
        half = len(new.x) // 2
        logits = self.student(torch.cat([again.x[:half], new.x[half:]]))
        with torch.autocast(batch.x.device.type, enabled=False):
            labels = cross_entropy(logits, batch.y)
            ours = widen(logits[:half])
            known = self.fresh[batch.index[:half], None]
            last = kd(ours, torch.where(known, self.past[batch.index[:half]], ours.detach()), self.temperature)
            loss = labels + self.alpha * last
        return Step(loss, {"cross_entropy": labels, "dlb": last}, logits.detach())

    def after_step(self, batch: Batch, step: Step) -> None:
        half = len(step.logits) // 2
        written = gather(batch.index[half:])
        self.past[written] = gather(widen(step.logits[half:])).to(self.past.dtype)
        self.fresh.zero_()[written] = True

    def candidates(self) -> dict[str, nn.Module]:
        return {"student": self.student}
