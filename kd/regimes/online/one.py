"""ONE: branches of one net learn from their gated ensemble. Lan et al., Knowledge Distillation by On-the-Fly Native
Ensemble, 2018."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from kd.batch import Batch, Facts, Outputs, Step
from kd.errors import InputError
from kd.losses.response.cross_entropy import cross_entropy
from kd.losses.response.kd import kd
from kd.regimes.online.branches import branched, cut, fork
from kd.regimes.regime import Regime
from kd.regimes.supervised import student_ports
from kd.tensors import widen


class ONE(Regime):
    """Trains two or more branches of the last stage, on one trunk. Each branch and their ensemble descend
    cross-entropy, each branch also w·T²·KL to the ensemble.

    The ensemble's logits are Σ g_i·z_i, with gates g = softmax(ReLU(BN(linear))) of what the trunk hands on, pooled.
    w rises over the first `ramp` epochs as exp(-5·(1 - epoch / ramp)²), from 0.007 to 1; the authors' 80 are of 300.

    `students` are nets of one architecture: the first brings the trunk, each a branch: all that runs after the stage
    before the last. A branch on the trunk is a net like them, and a candidate: "branch0", "branch1", ... All is a mean
    over samples, so that processes gather nothing.
    """

    def __init__(self, students: Sequence[nn.Module], temperature: float = 3.0, ramp: int = 80) -> None:
        super().__init__()
        if len(students) < 2:
            raise InputError("ONE.students", len(students), "needs two or more")
        shapes = [{name: value.shape for name, value in student.state_dict().items()} for student in students]
        if any(other != shapes[0] for other in shapes):
            raise InputError("ONE.students", len(students), "must be of one architecture")
        if temperature <= 0:
            raise InputError("ONE.temperature", temperature, "must be above 0")
        if ramp < 0:
            raise InputError("ONE.ramp", ramp, "must be 0 or above")
        self.student = students[0]
        self.temperature, self.ramp = temperature, ramp
        self._others = tuple(students[1:])  # in no registry: only their branches train

    def bind(self, data: Facts) -> None:
        found = student_ports(self.student, data)
        self.fork = fork(self.student, self._others, data)
        self.branches = nn.ModuleList(self.fork.tail(other) for other in self._others)
        count = 1 + len(self._others)
        self.gate = nn.Sequential(nn.Linear(found.stages[-2][0], count), nn.BatchNorm1d(count), nn.ReLU())
        self._others = ()

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        together, trunk = branched(self.student, self.fork, self.branches, batch.x)
        gates = self.gate(trunk)
        logits = together.chunk(1 + len(self.branches))
        with torch.autocast(batch.x.device.type, enabled=False):
            weights = widen(gates).softmax(1)
            ensemble = torch.stack([weights[:, i, None] * widen(own) for i, own in enumerate(logits)]).sum(0)
            parts = {f"branch{i}_cross_entropy": cross_entropy(own, batch.y) for i, own in enumerate(logits)}
            parts["ensemble_cross_entropy"] = cross_entropy(ensemble, batch.y)
            taught = torch.stack([kd(own, ensemble, self.temperature) for own in logits]).sum()
            loss = torch.stack(list(parts.values())).sum() + self._weight(batch.clock.epoch) * taught
        return Step(loss, parts | {"one": taught}, logits[0].detach())

    def _weight(self, epoch: int) -> float:
        left = 1 - epoch / self.ramp if epoch < self.ramp else 0.0
        return math.exp(-5 * left**2)

    def candidates(self) -> dict[str, nn.Module]:
        nets = [self.student, *(cut(self.student, self.fork, tail) for tail in self.branches)]
        return {f"branch{i}": net for i, net in enumerate(nets)}
