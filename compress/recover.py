"""`Recover`: a short distillation that mends what a stage before it has cost."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from torch import nn

import students
from compress.stage import Artefact, Context, Report
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import fit
from kd.regimes import Offline, Supervised
from kd.regimes.supervised import student_ports


@dataclass(frozen=True)
class Recover:
    """Distil the teacher into the model as it is. What comes out is never worse on validation than what came in.

    Without a teacher it learns from the labels alone.

    Attributes:
        epochs: how long.
        lr: the learning rate; None: that of the context's fit.
    """

    epochs: int = 5
    lr: float | None = None

    def __post_init__(self) -> None:
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
        schedule = replace(context.fit, epochs=self.epochs, lr=self.lr or context.fit.lr, warmup_epochs=0)
        if context.teacher is None:
            regime: Offline | Supervised = Supervised(student)
            notes.append("There is no teacher: recovery learnt from the labels alone.")
        else:
            regime = Offline(student, context.teacher, context.objective())
        history = fit(regime, data, schedule, context.folder, context.accelerator, label="recover")
        after = max(before, history.best_top1)
        details = {"top1_before": before, "top1_after": after, "curve": history.epochs}
        if history.best_top1 < before:
            notes.append(f"Recovery only reached {history.best_top1:.2f}% of {before:.2f}% on validation: undone.")
            return model, Report("recover", tuple(notes), details)
        return students.adopt(regime.deploy(history.best_name)).eval(), Report("recover", tuple(notes), details)
