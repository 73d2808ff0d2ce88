"""KD: match the teacher's softened probabilities. Hinton et al., Distilling the Knowledge in a Neural Network, 2015."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kd.batch import Batch, Outputs
from kd.errors import InputError
from kd.loss import Loss
from kd.tensors import expect, pair


def kd(student: Tensor, teacher: Tensor, temperature: float | Tensor = 4.0) -> Tensor:
    """Batch mean of T²·KL(softmax(teacher / T) ‖ softmax(student / T)), of (N, C) logits each.

    T² keeps the gradient's size independent of the temperature.
    """
    fits = student.dim() == 2 and student.shape == teacher.shape
    expect(fits, "(N, C) logits of student and teacher alike", student, teacher)
    student, teacher = pair(student, teacher)
    ours, theirs = (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class KD(Loss):
    """`kd` on the logits."""

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise InputError("KD.temperature", temperature, "must be above 0")
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return kd(student.logits, teacher.logits, self.temperature)
