"""NKD: the teacher's probability of the target as its label, and the other classes normalised. Yang et al., From
Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss, 2023."""

from __future__ import annotations

from torch import Tensor

from kd.batch import Batch, Outputs
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.response.dkd import beside, by_label


def nkd(student: Tensor, teacher: Tensor, target: Tensor, gamma: float = 1.5, temperature: float = 1.0) -> Tensor:
    """Batch mean of -t_y·log s_y - gamma·T²·Σ t̂_i·log ŝ_i, of (N, C) logits each.

    s and t are softmax(logits), whatever T is; ŝ and t̂ are softmax(logits / T) over the C - 1 classes beside y, so that
    their term is 0 for C = 2. `target` is y, (N,) integer; or (N, C) probabilities, and the result the mean over y
    drawn from them (in memory for C logits a sample and label above 0).
    """
    student, teacher, label, weight = by_label(student, teacher, target)
    of_target = teacher.softmax(1) * student.log_softmax(1)
    student, teacher = (beside(logits / temperature, label) for logits in (student, teacher))
    of_others = (teacher.softmax(1) * student.log_softmax(1)).sum(1)
    return -weight @ (of_target.gather(1, label[:, None]).squeeze(1) + gamma * temperature**2 * of_others)


class NKD(Loss):
    """`nkd` on the logits. In the paper beside cross-entropy with weight 1; on ImageNet gamma = 1.5 and T = 1."""

    def __init__(self, gamma: float = 3.5, temperature: float = 3.0) -> None:
        super().__init__()
        if gamma < 0:
            raise InputError("NKD.gamma", gamma, "must be 0 or above")
        if temperature <= 0:
            raise InputError("NKD.temperature", temperature, "must be above 0")
        self.gamma, self.temperature = gamma, temperature

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return nkd(student.logits, teacher.logits, batch.y, self.gamma, self.temperature)
