"""PS-KD: a net's targets lean on what it predicted an epoch ago. Kim et al., Self-Knowledge Distillation with
Progressive Refinement of Targets, 2021."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd.batch import Batch, Demands, Facts, Outputs, Step
from kd.errors import InputError
from kd.loss import gather
from kd.losses.response.cross_entropy import cross_entropy
from kd.regimes.regime import Regime
from kd.regimes.supervised import student_ports
from kd.tensors import expect, probabilities, widen


def ps_kd_target(target: Tensor, past_probs: Tensor, alpha: float) -> Tensor:
    """(N, C) soft targets (1 - alpha)·target + alpha·past_probs, without gradients.

    `target` is (N,) integer or (N, C) probabilities, `past_probs` (N, C).
    """
    fits = past_probs.dim() == 2 and target.shape in (past_probs.shape, past_probs.shape[:1])
    expect(fits, "a target of (N,) or (N, C) and (N, C) past probabilities", target, past_probs)
    past = widen(past_probs.detach())
    return (1 - alpha) * probabilities(target, past.shape[1]).to(past.dtype) + alpha * past


class PSKD(Regime):
    """Trains `student` by cross-entropy with `ps_kd_target`; alpha rises linearly to `alpha` in the last epoch.

    The bank of predictions (size of the data × classes, float32) is one-hot at first, so that the first epoch is plain
    cross-entropy. It is part of the state dict, and every process holds all of it.
    """

    demands = Demands(hard_labels=True)
    past: Tensor

    def __init__(self, student: nn.Module, alpha: float = 0.8) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise InputError("PSKD.alpha", alpha, "must lie between 0 and 1")
        self.student = student
        self.alpha = alpha

    def bind(self, data: Facts) -> None:
        student_ports(self.student, data)
        self.register_buffer("past", probabilities(data.labels, data.classes).float())

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        logits = self.student(batch.x)
        alpha = self.alpha * (batch.clock.epoch + 1) / batch.clock.epochs
        with torch.autocast(batch.x.device.type, enabled=False):
            loss = cross_entropy(logits, ps_kd_target(batch.y, self.past[batch.index], alpha))
        return Step(loss, {"ps_kd": loss}, logits.detach())

    def after_step(self, batch: Batch, step: Step) -> None:
        # all ranks write what all ranks saw, so that their banks stay equal
        self.past[gather(batch.index)] = gather(widen(step.logits).softmax(1)).to(self.past.dtype)

    def candidates(self) -> dict[str, nn.Module]:
        return {"student": self.student}
