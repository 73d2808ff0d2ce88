"""CRD: tell a sample from those of other classes, across the two nets. Tian et al., Contrastive Representation
Distillation, 2020."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.data.counter import uniform
from kd.errors import InputError
from kd.loss import Loss, gather
from kd.losses.relation.rows import unit_rows
from kd.tensors import expect, widen


def contrast(log_p: Tensor, size: int) -> Tensor:
    """-log h(positive) - Σ_K log(1 - h(negative)), batch mean, with h = P / (P + K / size).

    `log_p` is (N, 1 + K): log P of the positive, then of K negatives out of `size` entries. The authors' code adds 1e-7
    to the denominator of h, the paper does not.
    """
    expect(log_p.dim() == 2 and log_p.shape[1] > 1, "(N, 1 + K) log-probabilities of 1 positive and K negatives", log_p)
    log_p = widen(log_p)
    evidence = log_p - math.log((log_p.shape[1] - 1) / size)  # h is its sigmoid
    return (F.softplus(-evidence[:, 0]) + F.softplus(evidence[:, 1:]).sum(1)).mean()


class CRD(Loss):
    """`contrast` of the student's embeddings with a bank of the teacher's, plus that of the teacher's with one of the
    student's, each projected to length 1 in `features` dimensions by a linear layer that trains along.

    P = exp(a·b / temperature) / Z, and Z, one a bank, stays what makes the mean P of the first batch 1 / size of the
    data. A bank has an entry for each sample, at first a random one; after a step those of its samples become
    momentum·old + (1 - momentum)·new, at length 1 again. Banks and Z are part of the state dict, and every process
    holds all of them: samples meet the banks and not each other, so only what is written is gathered.

    Negatives are samples of other classes, as many as `negatives` or as there are for every class: one from each of
    that many equal slices of them, so that all take part where the data has no more. In the paper beside cross-entropy
    with weight 0.8.
    """

    needs = Needs(embedding=True, hard_labels=True)
    student_bank: Tensor
    teacher_bank: Tensor
    z: Tensor
    seed: Tensor
    labels: Tensor
    order: Tensor
    first: Tensor
    own: Tensor

    def __init__(
        self, features: int = 128, negatives: int = 16384, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        super().__init__()
        for name, count in (("features", features), ("negatives", negatives)):
            if count < 1:
                raise InputError(f"CRD.{name}", count, "must be 1 or above")
        if temperature < 0.02:
            raise InputError("CRD.temperature", temperature, "must be 0.02 or above: float32 has to hold exp(1/it)")
        if not 0 <= momentum < 1:
            raise InputError("CRD.momentum", momentum, "must be 0 or above, and below 1")
        self.features, self.negatives = features, negatives
        self.temperature, self.momentum = temperature, momentum
        self._seen: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.embed_student = nn.Linear(student.embedding, self.features)
        self.embed_teacher = nn.Linear(teacher.embedding, self.features)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, unit_rows(torch.randn(data.size, self.features)))
        self.register_buffer("z", torch.zeros(2))  # 0 where it is not known yet
        self.register_buffer("seed", torch.randint(2**62, (1,)))
        own = data.labels.bincount(minlength=data.classes)
        self.drawn = min(self.negatives, data.size - int(own.max()))
        if self.drawn == 0:
            raise InputError("CRD.negatives", self.negatives, "the data has one class, so there are none")
        # samples in the order of classes: which they are, how many a class has and where it begins
        known = {
            "labels": data.labels,
            "order": data.labels.argsort(stable=True),
            "own": own,
            "first": own.cumsum(0) - own,
        }
        for name, value in known.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        ours = unit_rows(self.embed_student(student.embedding))
        theirs = unit_rows(self.embed_teacher(teacher.embedding.detach()))
        entries = torch.cat([batch.index[:, None], self.draw(batch)], 1)
        scores = torch.stack(
            [self._scores(ours, self.teacher_bank, entries), self._scores(theirs, self.student_bank, entries)]
        )
        size = len(self.labels)
        here = gather(scores.detach().exp().mean((1, 2))[None]).mean(0) * size
        z = torch.where(self.z > 0, self.z, here)
        self._seen = batch.index, ours.detach(), theirs.detach(), z
        return contrast(scores[0] - z[0].log(), size) + contrast(scores[1] - z[1].log(), size)

    def draw(self, batch: Batch) -> Tensor:
        """(N, K) samples of other classes: a pure function of the seed, the step and each sample's index."""
        label = self.labels[batch.index]
        own, first = self.own[label][:, None], self.first[label][:, None]
        others = len(self.labels) - own
        steps = torch.full_like(batch.index, batch.clock.step)
        within = (uniform(self.drawn, self.seed, steps, batch.index) * others).long()
        place = (torch.arange(self.drawn, device=own.device) * others + within) // self.drawn
        return self.order[place + own * (place >= first)]  # in the order of classes, past the sample's own

    def _scores(self, anchors: Tensor, bank: Tensor, entries: Tensor) -> Tensor:
        # all products, then a choice: many times faster than to gather K rows of the bank for each sample
        return (anchors @ bank.T).gather(1, entries) / self.temperature

    def after_step(self, batch: Batch) -> None:
        assert self._seen is not None
        index, ours, theirs, z = self._seen
        self._seen = None
        self.z.copy_(z)
        index = gather(index)  # all ranks write what all ranks saw, so that their banks stay equal
        for bank, new in ((self.student_bank, ours), (self.teacher_bank, theirs)):
            bank[index] = unit_rows(self.momentum * bank[index] + (1 - self.momentum) * gather(new))
