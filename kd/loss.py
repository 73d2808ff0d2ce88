"""`Loss`: one method's formula with its projections. `Objective`: weighted losses, summed in one float32 island."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from kd.batch import Batch, Facts, Needs, Outputs, Ports, View
from kd.errors import InputError
from kd.tensors import each, widen


class Loss(nn.Module):
    """One distillation term: says what it `needs`, builds its projections in `bind`, computes in `forward`."""

    needs: Needs = Needs()

    @property
    def asks(self) -> Needs:
        """What is read of the teacher, where that is less than what is read of the student."""
        return self.needs

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        """Build what trains, once, from shapes. Raises InputError where the pair cannot work."""

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The unweighted scalar loss. Gradients must not reach `teacher`."""
        raise NotImplementedError(f"{type(self).__name__} computes no loss: override forward")

    def after_step(self, batch: Batch) -> None:
        """Write banks from what `forward` saw; not called where AMP skipped the step."""

    def deployed(self, student: nn.Module) -> nn.Module:
        """What is shipped of a student that was trained by this loss."""
        return student


@dataclass(frozen=True)
class Term:
    """A loss in an objective: `weight` rises linearly from 0 over the first `warmup` epochs."""

    loss: Loss = field()
    weight: float = 1.0
    warmup: int = 0


def several() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(value: Tensor) -> Tensor:
    """The rows of all ranks, in their order, with gradients; `value` itself where there is one process."""
    return torch.cat(all_gather(value.contiguous())) if several() else value


def _gather_outputs(outputs: Outputs, needs: Needs) -> Outputs:
    wanted = {index % len(outputs.stages) for index in needs.stages} if outputs.stages else set()
    return Outputs(
        gather(outputs.logits),
        gather(outputs.embedding) if needs.embedding and outputs.embedding is not None else None,
        tuple(gather(stage) if i in wanted else stage for i, stage in enumerate(outputs.stages)),
        {name: gather(value) for name, value in outputs.extra.items()},
        tuple(gather(stage) if i in wanted else stage for i, stage in enumerate(outputs.before)),
        tuple(_gather_outputs(other, needs) for other in outputs.others),
    )


def _gather_batch(batch: Batch) -> Batch:
    views = tuple(View(gather(v.x), gather(v.y), gather(v.index), v.draw) for v in batch.views)
    return Batch(views, batch.clock)


class Objective(nn.Module):
    """A weighted sum of named losses.

    Runs outside autocast on float32 (or float64) outputs. A loss whose needs are `gathered` sees the outputs of all
    ranks: the gradient of the gather sums over ranks and DDP averages over them, so that two processes with N samples
    give the loss and the gradients of one with 2N.
    """

    def __init__(self, terms: Mapping[str, Term]) -> None:
        super().__init__()
        if not terms:
            raise InputError("objective", "{}", "needs at least one term")
        self.losses = nn.ModuleDict({name: term.loss for name, term in terms.items()})
        self.weights = {name: (term.weight, term.warmup) for name, term in terms.items()}

    @classmethod
    def fresh(cls, terms: Mapping[str, Term]) -> Self:
        """Of copies of the losses, which are bound to one pair of models."""
        return cls({name: replace(term, loss=copy.deepcopy(term.loss)) for name, term in terms.items()})

    def named(self) -> list[tuple[str, Loss]]:
        return [(name, loss) for name, loss in self.losses.items() if isinstance(loss, Loss)]

    @property
    def needs(self) -> Needs:
        return reduce(or_, (loss.needs for _, loss in self.named()))

    @property
    def asks(self) -> Needs:
        return reduce(or_, (loss.asks for _, loss in self.named()))

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        for name, loss in self.named():
            if data.soft_labels and loss.needs.hard_labels:
                raise InputError("data.augment", "mixup or cutmix", f"{name} is defined for hard labels only")
            for side, ports, needs in (("student", student, loss.needs), ("teacher", teacher, loss.asks)):
                for index in needs.stages:
                    if not -len(ports.stages) <= index < len(ports.stages):
                        raise InputError(f"{name}.stages", index, f"the {side} has {len(ports.stages)} stages")
            loss.bind(student, teacher, data)

    def after_step(self, batch: Batch) -> None:
        for _, loss in self.named():
            loss.after_step(batch)

    def deployed(self, student: nn.Module) -> nn.Module:
        for _, loss in self.named():
            student = loss.deployed(student)
        return student

    def weight(self, name: str, epoch: int) -> float:
        weight, warmup = self.weights[name]
        return weight * min((epoch + 1) / warmup, 1.0) if warmup else weight

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(student.logits.device.type, enabled=False):
            student, teacher = each(widen, student), each(widen, teacher)
            whole: tuple[Outputs, Outputs, Batch] | None = None
            parts: dict[str, Tensor] = {}
            for name, loss in self.named():
                if loss.needs.gathered and several():
                    if whole is None:
                        ours, theirs = _gather_outputs(student, self.needs), _gather_outputs(teacher, self.asks)
                        whole = ours, theirs, _gather_batch(batch)
                    parts[name] = loss(*whole)
                else:
                    parts[name] = loss(student, teacher, batch)
            # no parameter may be idle, or DDP aborts: a hint alone would leave the classifier without a gradient
            nothing = student.logits[:0].sum()
            total = sum((self.weight(name, batch.clock.epoch) * part for name, part in parts.items()), nothing)
            return total, parts  # not detached: torch.compile (2.14) would detach the total too
