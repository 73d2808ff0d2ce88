"""DKD: distil how likely the target is and how likely the others are, apart. Zhao et al., Decoupled Knowledge
Distillation, 2022."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd.batch import Batch, Facts, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.tensors import expect, pair


def dkd(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """Batch mean of T²·(alpha·TCKD + beta·NCKD), of (N, C) logits each.

    TCKD is KL(teacher ‖ student) of the pair [p_y, 1 - p_y], NCKD that of the softmax over the other C - 1 classes,
    both at temperature T. `target` is y, (N,) integer; or (N, C) probabilities, and the result the mean over y drawn
    from them (in memory for C logits a sample and label above 0). Raises ValueError for C < 3: nothing is left to NCKD.
    """
    student, teacher, label, weight = by_label(student, teacher, target, classes=3)
    ours, theirs = _apart(student / temperature, label), _apart(teacher / temperature, label)
    tckd, nckd = (F.kl_div(s, t, reduction="none", log_target=True).sum(1) for s, t in zip(ours, theirs, strict=True))
    return temperature**2 * weight @ (alpha * tckd + beta * nckd)


def by_label(
    student: Tensor, teacher: Tensor, target: Tensor, classes: int = 2
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of both, label and weight of every sample, or of every label above 0 of every sample.

    The weights are such that the weighted sum is the batch mean. Raises ValueError for fewer `classes`.
    """
    alike = student.dim() == 2 and student.shape == teacher.shape and student.shape[1] >= classes
    rule = f"(N, C) logits of student and teacher alike, of {classes} or more classes, and a target of (N,) or (N, C)"
    expect(alike and target.shape in (student.shape, student.shape[:1]), rule, student, teacher, target)
    student, teacher = pair(student, teacher)
    if target.dim() == 1:
        return student, teacher, target, student.new_full(target.shape, 1 / len(target))
    weight = target.to(student.dtype) / len(target)
    sample, label = weight.nonzero(as_tuple=True)
    return student[sample], teacher[sample], label, weight[sample, label]


def beside(logits: Tensor, label: Tensor) -> Tensor:
    """(N, C - 1) logits without that of the (N,) label."""
    classes = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, classes + (classes >= label[:, None]))


def _apart(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the label or not, (N, 2), and of the classes beside it among themselves, (N, C - 1)."""
    others = beside(logits, label)
    ahead = logits.gather(1, label[:, None]) - others.logsumexp(1, keepdim=True)
    return F.logsigmoid(torch.cat([ahead, -ahead], 1)), others.log_softmax(1)


class DKD(Loss):
    """`dkd` on the logits. In the paper beside cross-entropy with weight 1 and a warm-up of 20 epochs.

    `beta` is the pair's: 8 where student and teacher are far apart, 6 for WRN-16-2, 2 for ResNet-56 to ResNet-20; on
    ImageNet T = 1, alpha = 0.5 or 1 and beta = 0.5 or 2.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if weight < 0:
                raise InputError(f"DKD.{name}", weight, "must be 0 or above")
        if temperature <= 0:
            raise InputError("DKD.temperature", temperature, "must be above 0")
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        if student.classes < 3:
            raise InputError("data.classes", student.classes, "DKD needs 3 or more, two beside the target")

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return dkd(student.logits, teacher.logits, batch.y, self.alpha, self.beta, self.temperature)
