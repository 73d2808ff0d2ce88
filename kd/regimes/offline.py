"""`Offline`: a student learns from a frozen teacher. Hinton et al., 2015, and every loss in `kd.losses`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kd.batch import Batch, Demands, Facts, Outputs, Step, View
from kd.errors import InputError
from kd.evaluate import inference
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

    @property
    def demands(self) -> Demands:  # type: ignore[override]  # what the losses need
        needs = self.objective.needs
        return Demands(views=needs.views, strong=needs.strong, hard_labels=needs.hard_labels)

    def bind(self, data: Facts) -> None:
        student, teacher = student_ports(self.student, data), self.teacher.guide.ports(data)
        if teacher.classes != student.classes:
            raise InputError("teacher.source", f"{teacher.classes} classes", f"the student has {student.classes}")
        self.objective.bind(student, teacher, data)
        if self.objective.needs.before:  # shapes do not tell whether such maps can be had: look at one image
            noise = torch.rand(1, *data.image_shape, generator=torch.Generator().manual_seed(0))
            image = View(noise.to(next(self.student.parameters())), data.labels[:1], torch.arange(1), -1)
            with inference(self.student):
                read(self.student, image.x, self.objective.needs)
                self.teacher.guide(image, self.objective.asks)

    def guide(self, batch: Batch) -> tuple[Outputs, ...]:
        return tuple(self.teacher.guide(view, self.objective.asks) for view in batch.views)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        outputs = together([read(self.student, view.x, self.objective.needs) for view in batch.views])
        loss, parts = self.objective(outputs, together(guides), batch)
        return Step(loss, parts, outputs.logits.detach())

    def after_step(self, batch: Batch, step: Step) -> None:
        self.objective.after_step(batch)

    def candidates(self) -> dict[str, nn.Module]:
        return {"student": self.objective.deployed(self.student)}


def together(views: Sequence[Outputs]) -> Outputs:
    """What is said about the first view, and with it about the others."""
    return views[0]._replace(others=tuple(views[1:]))
