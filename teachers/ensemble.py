"""`Ensemble`: several teachers that answer as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd.batch import Facts, Needs, Outputs, Ports, View
from kd.checkpoint import digest
from kd.errors import InputError
from teachers.teacher import Teacher


class Ensemble:
    """The mean of the teachers' logits; the embeddings side by side. Stage maps have no mean: there are none."""

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        if not teachers:
            raise InputError("teacher.source", "[]", "an ensemble needs at least one teacher")
        self.teachers = tuple(teachers)

    def __call__(self, view: View, needs: Needs) -> Outputs:
        answers = [teacher(view, Needs(embedding=needs.embedding)) for teacher in self.teachers]
        logits = torch.stack([answer.logits for answer in answers]).mean(0)
        embeddings = [answer.embedding for answer in answers if answer.embedding is not None]
        return Outputs(logits, torch.cat(embeddings, 1) if embeddings else None)

    def predict(self, x: Tensor) -> Tensor:
        return torch.stack([teacher.predict(x) for teacher in self.teachers]).mean(0)

    def ports(self, data: Facts) -> Ports:
        ports = [teacher.ports(data) for teacher in self.teachers]
        classes = sorted({port.classes for port in ports})
        if len(classes) > 1:
            raise InputError("teacher.source", f"teachers of {classes} classes", "an ensemble agrees on its classes")
        return Ports(classes[0], sum(port.embedding for port in ports), ())

    def identity(self) -> str:
        return digest([], " ".join(teacher.identity() for teacher in self.teachers))
