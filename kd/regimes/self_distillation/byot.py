"""BYOT: early exits learn from the end of their own net. Zhang et al., Be Your Own Teacher: Improve the Performance of
Convolutional Neural Networks via Self Distillation, 2019."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.batch import Batch, Facts, Needs, Outputs, Step
from kd.errors import InputError
from kd.losses.response.cross_entropy import cross_entropy
from kd.losses.response.ofa import stage_exit
from kd.regimes.regime import Regime
from kd.regimes.supervised import student_ports
from kd.taps import read
from kd.tensors import expect, pair


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """Batch mean of T²·(-Σ p·log q), p and q the softmax of (N, C) teacher and student logits at T."""
    fits = student.dim() == 2 and student.shape == teacher.shape
    expect(fits, "(N, C) logits of student and teacher alike", student, teacher)
    student, teacher = pair(student, teacher)
    theirs = (teacher / temperature).softmax(1)
    return -(temperature**2) * (theirs * (student / temperature).log_softmax(1)).sum(1).mean()


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Batch mean of the squared distance between (N, D) embeddings."""
    fits = student.dim() == 2 and student.shape == teacher.shape
    expect(fits, "(N, D) embeddings of student and teacher alike", student, teacher)
    student, teacher = pair(student, teacher)
    return (student - teacher).square().sum(1).mean()


class BYOT(Regime):
    """Trains `student` with exits from its stages, which are not shipped: (1 - alpha)·CE of all, the end included, plus
    alpha·`soft_cross_entropy` of each exit to the end, plus `features`·`squared_distance` of what each exit classifies
    by to the embedding.

    `stages` are those with an exit, counted from the end where negative; by default the three before the last one, or
    as many as there are; of a net of eight or more, as vision transformers show them, three at equal distances. All is
    a mean over samples, so that processes gather nothing. (The authors' code sums the distances over the batch.)
    """

    def __init__(
        self,
        student: nn.Module,
        stages: Sequence[int] | None = None,
        alpha: float = 0.1,
        temperature: float = 3.0,
        features: float = 1e-6,
    ) -> None:
        super().__init__()
        if stages is not None and not stages:
            raise InputError("BYOT.stages", stages, "must be one or more")
        if not 0 <= alpha < 1:
            raise InputError("BYOT.alpha", alpha, "must be 0 or above, and below 1")
        if temperature <= 0:
            raise InputError("BYOT.temperature", temperature, "must be above 0")
        if features < 0:
            raise InputError("BYOT.features", features, "must be 0 or above")
        self.student = student
        self.stages = None if stages is None else tuple(stages)
        self.alpha, self.temperature, self.features = alpha, temperature, features

    def bind(self, data: Facts) -> None:
        found = student_ports(self.student, data)
        count = len(found.stages)
        step = max(1, count // 4)
        stages = self.stages or tuple(range(-1 - step, -count - 1, -step)[:3])
        if not stages:
            raise InputError("BYOT.student", f"{count} stages", "needs two or more, to have an exit before the last")
        for stage in stages:
            if not -count <= stage < count or stage % count == count - 1:
                raise InputError("BYOT.stages", stage, f"the student has {count} stages, the last of which is its end")
        self.stages = stages
        exits = [stage_exit(found.stages[stage:], found.embedding, found.classes) for stage in stages]
        self.exits = nn.ModuleList(layers[:-1] for layers in exits)
        self.classifiers = nn.ModuleList(layers[-1] for layers in exits)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        assert self.stages is not None
        end = read(self.student, batch.x, Needs(embedding=True, stages=self.stages))
        assert end.embedding is not None
        embeddings = [layers(end.stages[stage]) for layers, stage in zip(self.exits, self.stages, strict=True)]
        logits = [classify(x) for classify, x in zip(self.classifiers, embeddings, strict=True)]
        with torch.autocast(batch.x.device.type, enabled=False):
            t = self.temperature
            parts = {
                "cross_entropy": torch.stack([cross_entropy(x, batch.y) for x in (end.logits, *logits)]).sum(),
                "distillation": torch.stack([soft_cross_entropy(x, end.logits, t) for x in logits]).sum(),
                "features": torch.stack([squared_distance(x, end.embedding) for x in embeddings]).sum(),
            }
            loss = (1 - self.alpha) * parts["cross_entropy"] + self.alpha * parts["distillation"]
            loss = loss + self.features * parts["features"]
        return Step(loss, parts, end.logits.detach())

    def candidates(self) -> dict[str, nn.Module]:
        return {"student": self.student}
