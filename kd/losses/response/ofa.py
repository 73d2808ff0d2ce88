"""OFA: distil between architectures in the space of logits, where their features can meet. Hao et al., One-for-All:
Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation, 2023."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.tensors import expect, pair, probabilities


def ofa(student: Tensor, teacher: Tensor, target: Tensor, eps: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Batch mean of -Σ_i ((t_i + 1_iy)^eps - 1_iy)·log s_i, of (N, C) logits each; s and t are softmax(logits / T).

    `target` is y, (N,) integer; or (N, C) probabilities, and the result the mean over y drawn from them. (In place of
    1_iy they could make a weight negative.) For eps = 1 it cancels out; above, the target weighs more.
    """
    fits = student.dim() == 2 and student.shape == teacher.shape and target.shape in (student.shape, student.shape[:1])
    expect(fits, "(N, C) logits of student and teacher alike and a target of (N,) or (N, C)", student, teacher, target)
    student, teacher = pair(student, teacher)
    labels = probabilities(target, student.shape[1]).to(student.dtype)
    theirs = (teacher / temperature).softmax(1)
    weights = labels * ((theirs + 1) ** eps - 1) + (1 - labels) * theirs**eps
    return -(weights * (student / temperature).log_softmax(1)).sum(1).mean()


class OFA(Loss):
    """The sum of `ofa` on the logits and on those of exits from stages of the student, which train along.

    In the paper from four stages, with weight 1 beside cross-entropy, and eps = 1.5 on ImageNet. `stages` counts from
    the end where negative; by default there are four at equal distances, the last one included, or all of fewer.
    """

    needs = Needs(stages=(-1,))  # all come where any is needed; which are read is not known before the student is

    def __init__(self, stages: Sequence[int] | None = None, eps: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        if stages is not None and not stages:
            raise InputError("OFA.stages", stages, "must be one or more")
        for name, value in (("eps", eps), ("temperature", temperature)):
            if value <= 0:
                raise InputError(f"OFA.{name}", value, "must be above 0")
        self.stages, self.eps, self.temperature = stages, eps, temperature

    @property
    def asks(self) -> Needs:
        return Needs()  # logits alone: so they may be stored, or those of an ensemble

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        count = len(student.stages)
        self.stages = self.stages or range(-1, -count - 1, -max(1, count // 4))[:4]
        for stage in self.stages:
            if not -count <= stage < count:
                raise InputError("OFA.stages", stage, f"the student has {count} stages")
        width = max(student.embedding, teacher.embedding)
        self.exits = nn.ModuleList(stage_exit(student.stages[stage:], width, student.classes) for stage in self.stages)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert self.stages is not None
        exits = zip(self.exits, self.stages, strict=True)
        logits = [student.logits, *(head(student.stages[stage]) for head, stage in exits)]
        return torch.stack([ofa(x, teacher.logits, batch.y, self.eps, self.temperature) for x in logits]).sum()


def stage_exit(stages: Sequence[tuple[int, int, int]], width: int, classes: int) -> nn.Sequential:
    """From the first map to logits: halved to the size of the last one, once at least before it, up to `width`."""
    (channels, *size), (_, *last) = stages[0], stages[-1]
    ratio = max(ours / theirs for ours, theirs in zip(size, last, strict=True))
    halvings = max(1, math.ceil(math.log2(ratio))) if len(stages) > 1 else 0
    widths = [channels * 2**i for i in range(halvings)] + [width if halvings else channels]
    layers = itertools.chain.from_iterable(map(_separable, widths, widths[1:]))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def _separable(source: int, target: int) -> list[nn.Module]:
    """Two separable convolutions, the first of which halves the map and the second of which changes its width."""
    return [
        nn.Conv2d(source, source, 3, 2, 1, groups=source, bias=False),
        nn.Conv2d(source, source, 1, bias=False),
        nn.BatchNorm2d(source),
        nn.ReLU(),
        nn.Conv2d(source, source, 3, 1, 1, groups=source, bias=False),
        nn.Conv2d(source, target, 1, bias=False),
        nn.BatchNorm2d(target),
        nn.ReLU(),
    ]
