"""`Initial`: a phase before the one that ships."""

from __future__ import annotations

from torch import nn

from kd.batch import Batch, Facts, Outputs, Step
from kd.loss import Objective
from kd.regimes.offline import Offline, together
from kd.regimes.regime import Guide


class Initial(Offline):
    """Trains what a later phase goes on with: `student`, or the losses themselves. It ships nothing, so `fit` keeps the
    last weights.

    Without a student, the losses see what the teacher says in its place: FT's paraphraser learns from that alone.
    """

    def __init__(self, student: nn.Module | None, teacher: Guide, objective: Objective) -> None:
        super().__init__(nn.Identity() if student is None else student, teacher, objective)
        self._alone = student is None

    def bind(self, data: Facts) -> None:
        if self._alone:
            ports = self.teacher.guide.ports(data)
            self.objective.bind(ports, ports, data)
        else:
            super().bind(data)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        if not self._alone:
            return super().forward(batch, guides)
        said = together(guides)
        loss, parts = self.objective(said, said, batch)
        return Step(loss, parts, said.logits)

    def candidates(self) -> dict[str, nn.Module]:
        return {}
