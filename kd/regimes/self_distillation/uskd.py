"""USKD: a net makes its own soft labels: of the target from its probability, of the others from their ranks. Yang et
al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss, 2023."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd.batch import Batch, Facts, Needs, Outputs, Step
from kd.errors import InputError
from kd.loss import gather
from kd.losses.response.cross_entropy import cross_entropy
from kd.losses.response.dkd import beside, by_label
from kd.regimes.regime import Regime
from kd.regimes.supervised import student_ports
from kd.taps import read

_SMOOTHING = 0.1  # of the labels that the weak logits learn


def uskd(logits: Tensor, weak: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The terms of the target and of the other classes, of (N, C) logits and weak ones, which get no gradient.

    With s = softmax(logits), the first is the mean of -p·log s_y, p = 1 + s_y² - the mean of s_y² over the batch (of
    all processes), a constant. The second is the mean of -Σ z_i·log ŝ_i over i ≠ y, ŝ the softmax over these classes
    and z_i in proportion to 1 / rank of i by ŝ_i + ŵ_i, ŵ that of the weak logits, from 1 for the largest. `target` is
    y, (N,) integer; or (N, C) probabilities, and both are means over y drawn from them.

    (The authors' code ranks the target among the others, and adds log-probabilities to ŵ; the paper does not.)
    """
    logits, weak, label, weight = by_label(logits, weak, target)
    log_p = logits.log_softmax(1).gather(1, label[:, None]).squeeze(1)
    squared = (2 * log_p.detach()).exp()
    mean = gather((weight @ squared)[None]).mean()
    of_target = -weight @ ((1 + squared - mean) * log_p)
    others = beside(logits, label)
    order = (others.detach().softmax(1) + beside(weak, label).softmax(1)).argsort(stable=True, dim=1, descending=True)
    zipf = 1 / torch.arange(1, others.shape[1] + 1, device=logits.device, dtype=logits.dtype)
    of_others = -weight @ (others.log_softmax(1).gather(1, order) @ (zipf / zipf.sum()))
    return of_target, of_others


class USKD(Regime):
    """Trains `student` by CE + alpha and beta times the terms of `uskd` + mu·CE of the weak logits with labels smoothed
    by 0.1.

    The weak logits are those of a linear layer on a pooled stage, which trains along and is not shipped. `stage` is the
    one before the last, counted from the end; of vision transformers the paper takes the middle one. The weights are
    those on ImageNet. Processes gather one number, the mean that `uskd` needs; all else is a mean over samples.
    """

    def __init__(
        self, student: nn.Module, stage: int = -2, alpha: float = 1.0, beta: float = 0.1, mu: float = 0.005
    ) -> None:
        super().__init__()
        for name, weight in (("alpha", alpha), ("beta", beta), ("mu", mu)):
            if weight < 0:
                raise InputError(f"USKD.{name}", weight, "must be 0 or above")
        self.student, self.stage = student, stage
        self.alpha, self.beta, self.mu = alpha, beta, mu

    def bind(self, data: Facts) -> None:
        found = student_ports(self.student, data)
        if not -len(found.stages) <= self.stage < len(found.stages):
            raise InputError("USKD.stage", self.stage, f"the student has {len(found.stages)} stages")
        self.weak = nn.Linear(found.stages[self.stage][0], found.classes)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        outputs = read(self.student, batch.x, Needs(stages=(self.stage,)))
        weak = self.weak(outputs.stages[self.stage].mean((2, 3)))
        with torch.autocast(batch.x.device.type, enabled=False):
            of_target, of_others = uskd(outputs.logits, weak, batch.y)
            parts = {
                "cross_entropy": cross_entropy(outputs.logits, batch.y),
                "target": of_target,
                "others": of_others,
                "weak": cross_entropy(weak, batch.y, _SMOOTHING),
            }
            loss = parts["cross_entropy"] + self.alpha * of_target + self.beta * of_others + self.mu * parts["weak"]
        return Step(loss, parts, outputs.logits.detach())

    def candidates(self) -> dict[str, nn.Module]:
        return {"student": self.student}
