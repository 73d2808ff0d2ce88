"""`Ensemble`: several teachers that answer as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from kd.batch import Facts, Needs, Outputs, Ports, View
from kd.checkpoint import digest
from kd.errors import InputError
from kd.tensors import probabilities
from teachers.teacher import Teacher

Weighting = Literal["mean", "confidence"]


def confidence(logits: Tensor, target: Tensor) -> Tensor:
    """(K, N) weights of K ≥ 2 teachers for each sample, which sum to 1 over them: 1/(K-1)·(1 - softmax over K of CE).

    CE is the cross-entropy of each teacher's (K, N, C) logits with the labels: who is sure of the truth weighs more.
    `target` is (N,) integer or (N, C) probabilities. Zhang et al., Confidence-Aware Multi-Teacher Knowledge
    Distillation, 2022, equation 2.
    """
    truth = probabilities(target, logits.shape[2]).to(logits.dtype)
    losses = -(truth * logits.log_softmax(2)).sum(2)
    return (1 - losses.softmax(0)) / (len(logits) - 1)


class Ensemble:
    """A weighted mean of the teachers' logits, so a geometric mean of their probabilities; the embeddings side by side.

    Stage maps have no mean: there are none. The weights are equal, or each sample's `confidence`; where there are no
    labels, as in `predict`, they are equal.
    """

    def __init__(self, teachers: Sequence[Teacher], weighting: Weighting = "mean") -> None:
        if not teachers:
            raise InputError("teacher.source", "[]", "an ensemble needs at least one teacher")
        if weighting not in get_args(Weighting):
            raise InputError("teacher.weighting", weighting, f"must be one of: {', '.join(get_args(Weighting))}")
        self.teachers, self.weighting = tuple(teachers), weighting

    def __call__(self, view: View, needs: Needs) -> Outputs:
        answers = [teacher(view, Needs(embedding=needs.embedding)) for teacher in self.teachers]
        logits = torch.stack([answer.logits for answer in answers])
        if self.weighting == "confidence" and len(self.teachers) > 1:
            logits = confidence(logits, view.y)[:, :, None] * logits * len(self.teachers)
        embeddings = [answer.embedding for answer in answers if answer.embedding is not None]
        return Outputs(logits.mean(0), torch.cat(embeddings, 1) if embeddings else None)

    def predict(self, x: Tensor) -> Tensor:
        return torch.stack([teacher.predict(x) for teacher in self.teachers]).mean(0)

    def ports(self, data: Facts) -> Ports:
        ports = [teacher.ports(data) for teacher in self.teachers]
        classes = sorted({port.classes for port in ports})
        if len(classes) > 1:
            raise InputError("teacher.source", f"teachers of {classes} classes", "an ensemble agrees on its classes")
        return Ports(classes[0], sum(port.embedding for port in ports), ())

    def identity(self) -> str:
        return digest([], " ".join([self.weighting, *(teacher.identity() for teacher in self.teachers)]))
