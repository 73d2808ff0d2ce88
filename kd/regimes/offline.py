"""`Offline`: a student learns from a frozen teacher. Hinton et al., 2015, and every loss in `kd.losses`."""

from __future__ import annotations

from torch import nn

from kd.batch import Batch, Facts, Outputs, Step
from kd.errors import InputError
from kd.loss import Objective
from kd.regimes.regime import Frozen, Guide, Regime
from kd.regimes.supervised import student_ports
from kd.taps import read


class Offline(Regime):
    """Trains `student` by `objective` against what `teacher` says about the same view."""

    def __init__(self, student: nn.Module, teacher: Guide, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.teacher = Frozen(teacher)
        self.objective = objective

    def bind(self, data: Facts) -> None:
        student, teacher = student_ports(self.student, data), self.teacher.guide.ports(data)
        if teacher.classes != student.classes:
            raise InputError("teacher.source", f"{teacher.classes} classes", f"the student has {student.classes}")
        self.objective.bind(student, teacher, data)

    def guide(self, batch: Batch) -> tuple[Outputs, ...]:
        return tuple(self.teacher.guide(view, self.objective.needs) for view in batch.views)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        outputs = read(self.student, batch.x, self.objective.needs)
        loss, parts = self.objective(outputs, guides[0], batch)
        return Step(loss, parts, outputs.logits.detach())

    def candidates(self) -> dict[str, nn.Module]:
        return {"student": self.student}
