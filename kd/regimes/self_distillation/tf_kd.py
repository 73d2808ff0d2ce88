"""Tf-KD: a net learns from its own pretrained copy, or from a teacher made by hand. Yuan et al., Revisiting Knowledge
Distillation via Label Smoothing Regularization, 2020."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Batch, Facts, Needs, Outputs, Step
from kd.errors import InputError
from kd.losses.response.cross_entropy import cross_entropy
from kd.losses.response.kd import kd
from kd.regimes.regime import Frozen, Guide, Regime
from kd.regimes.supervised import student_ports
from kd.tensors import expect, probabilities, widen


def tf_kd_teacher(target: Tensor, classes: int, correct: float = 0.99, temperature: float = 20.0) -> Tensor:
    """(N, C) probabilities softmax(u / T) of a hand-made teacher, without gradients.

    u are probabilities themselves: u_y = correct, and (1 - correct) / (C - 1) for each other class. `target` is y, (N,)
    integer; or (N, C) probabilities, and the result the mean over y drawn from them.
    """
    fits = target.dim() == 1 or (target.dim() == 2 and target.shape[1] == classes)
    expect(fits, f"a target of (N,) or (N, {classes})", target)
    if classes < 2:
        raise ValueError(f"expected two or more classes, got {classes}")
    others = classes - 1
    hit = 1 / (1 + others * math.exp(((1 - correct) / others - correct) / temperature))
    labels = probabilities(target.detach(), classes)
    return hit * labels + (1 - hit) / others * (1 - labels)


class TfKD(Regime):
    """Trains `student` by (1 - alpha)·CE plus alpha times one of two terms.

    With a `teacher`, the student's own net pretrained by `Supervised` and frozen, it is Tf-KD self: T²·KL to it, both
    at T. Without one it is Tf-KD reg: KL(`tf_kd_teacher` ‖ softmax of the logits), where T softens the teacher alone.
    The authors' values for ResNet-18 on CIFAR-100: the defaults for reg; alpha = 0.95, T = 6 for self. All is a mean
    over samples, so that processes gather nothing.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Guide | None = None,
        alpha: float = 0.1,
        temperature: float = 20.0,
        correct: float = 0.99,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise InputError("TfKD.alpha", alpha, "must lie between 0 and 1")
        if temperature <= 0:
            raise InputError("TfKD.temperature", temperature, "must be above 0")
        if not 0 < correct <= 1:
            raise InputError("TfKD.correct", correct, "must be above 0, and at most 1")
        self.student = student
        self.teacher = None if teacher is None else Frozen(teacher)
        self.alpha, self.temperature, self.correct = alpha, temperature, correct

    def bind(self, data: Facts) -> None:
        student_ports(self.student, data)
        if self.teacher is not None and (found := self.teacher.guide.ports(data).classes) != data.classes:
            raise InputError("TfKD.teacher", f"{found} classes", f"the data has {data.classes}")

    def guide(self, batch: Batch) -> tuple[Outputs, ...]:
        return () if self.teacher is None else (self.teacher.guide(batch.views[0], Needs()),)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        logits = self.student(batch.x)
        with torch.autocast(batch.x.device.type, enabled=False):
            labels, taught = cross_entropy(logits, batch.y), self._taught(widen(logits), batch.y, guides)
            loss = (1 - self.alpha) * labels + self.alpha * taught
        return Step(loss, {"cross_entropy": labels, "tf_kd": taught}, logits.detach())

    def _taught(self, logits: Tensor, y: Tensor, guides: tuple[Outputs, ...]) -> Tensor:
        if guides:
            return kd(logits, guides[0].logits, self.temperature)
        theirs = tf_kd_teacher(y, logits.shape[1], self.correct, self.temperature)
        return F.kl_div(logits.log_softmax(1), theirs.to(logits.dtype), reduction="batchmean")

    def candidates(self) -> dict[str, nn.Module]:
        return {"student": self.student}
