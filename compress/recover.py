"""`Recover`: a short distillation that mends what a stage before it has cost."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import nn

import students
from compress import masks, sharing
from compress.stage import Artefact, Context, Report
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import fit
from kd.regimes import Guide, Offline, Regime, Supervised
from kd.regimes.supervised import student_ports
from teachers import Teacher

Source = Literal["teacher", "reference"]


@dataclass(frozen=True)
class Recover:
    """Distil the teacher into the model as it is. What comes out is never worse on validation than what came in.

    Without a teacher it learns from the model before the first stage; where that is not known, from the labels alone.

    Attributes:
        epochs: how long.
        lr: the learning rate; None: that of the context's fit.
        source: whom it learns from: the "teacher", or the "reference", the model before the first stage.
        keep_zeros: whether weights of convolutions and linear layers that are zero stay zero: what `Sparsify` left.
        keep_shared: whether weights of a layer that are equal stay equal, where it has few values: what `Cluster` left.
    """

    epochs: int = 5
    lr: float | None = None
    source: Source = "teacher"
    keep_zeros: bool = True
    keep_shared: bool = True

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise InputError("recover.source", self.source, f"must be {' or '.join(get_args(Source))}")
        for name in ("epochs", "lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"recover.{name}", value, "must be above 0")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError where the model is a file already, or model, teacher and data do not go together."""
        if not isinstance(model, nn.Module):
            raise InputError("stages", "recover", "must come before export: a file does not train")
        data, notes = context.data, []
        student_ports(model, data.facts)
        before = evaluate(model, data.evaluation("val")).top1
        student = copy.deepcopy(model).requires_grad_(True)
        if self.keep_shared:
            sharing.hold(student)
        if self.keep_zeros:
            masks.hold_zeros(student)
        schedule = replace(context.fit, epochs=self.epochs, lr=self.lr or context.fit.lr, warmup_epochs=0)
        regime, untaught = lessons(student, context, self.source)
        notes += untaught
        history = fit(regime, data, schedule, context.folder, context.accelerator, label="recover")
        after = max(before, history.best_top1)
        details = {"top1_before": before, "top1_after": after, "curve": history.epochs}
        if history.best_top1 < before:
            notes.append(f"Recovery only reached {history.best_top1:.2f}% of {before:.2f}% on validation: undone.")
            return model, Report("recover", tuple(notes), details)
        shipped = regime.deploy(history.best_name)
        masks.bake(shipped)
        return students.adopt(shipped).eval(), Report("recover", tuple(notes), details)


def lessons(student: nn.Module, context: Context, source: Source = "teacher") -> tuple[Regime, list[str]]:
    """How a stage trains, and what is to be said of it: who is there to be distilled teaches, or else the labels do."""
    guide: Guide | None = context.teacher if source == "teacher" else None
    if guide is None and context.reference is not None:
        guide = Teacher(context.reference)
    if guide is None:
        return Supervised(student), [f"There is no {source}: the model learnt from the labels alone."]
    return Offline(student, guide, context.objective()), []
