"""`Supervised`: a net learns from the labels alone. Trains teachers and students from scratch."""

from __future__ import annotations

from torch import Tensor, nn

from kd.batch import Batch, Facts, Outputs, Ports, Step
from kd.errors import InputError
from kd.loss import Objective, Term
from kd.losses.response.cross_entropy import CrossEntropy
from kd.regimes.regime import Regime
from kd.taps import ports, read
from kd.tensors import each


def student_ports(student: nn.Module, data: Facts) -> Ports:
    """The ports of `student` on this data. Raises InputError where it cannot take its images or has other classes."""
    found = ports(student, data.channels, data.image_size)
    if found.classes != data.classes:
        raise InputError("student", f"{found.classes} classes", f"the data has {data.classes}")
    return found


class Supervised(Regime):
    """Trains `student` by `objective` (cross-entropy by default), which sees the student's own outputs, without
    gradients, where it expects a teacher's."""

    def __init__(self, student: nn.Module, objective: Objective | None = None) -> None:
        super().__init__()
        self.student = student
        self.objective = objective or Objective({"cross_entropy": Term(CrossEntropy())})

    def bind(self, data: Facts) -> None:
        found = student_ports(self.student, data)
        self.objective.bind(found, found, data)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        outputs = read(self.student, batch.x, self.objective.needs)
        loss, parts = self.objective(outputs, each(Tensor.detach, outputs), batch)
        return Step(loss, parts, outputs.logits.detach())

    def candidates(self) -> dict[str, nn.Module]:
        return {"student": self.student}
