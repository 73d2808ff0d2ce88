"""`Recover`: a short distillation that mends what a stage before it has cost."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from torch import nn

from compress.stage import Artefact, Context, Report
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import fit
from kd.regimes import Offline


@dataclass(frozen=True)
class Recover:
    """Distil the teacher into the model as it is. What comes out is never worse on validation than what came in.

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
        """Raises InputError without a teacher, or where the model is a file already."""
        if context.teacher is None:
            raise InputError("recover.teacher", None, "recovery learns from a teacher: name one")
        if not isinstance(model, nn.Module):
            raise InputError("stages", "recover", "must come before export: a file does not train")
        data = context.data
        before = evaluate(model, data.evaluation("val")).top1
        student = copy.deepcopy(model)
        schedule = replace(context.fit, epochs=self.epochs, lr=self.lr or context.fit.lr, warmup_epochs=0)
        regime = Offline(student, context.teacher, context.objective())
        history = fit(regime, data, schedule, context.folder, context.accelerator, label="recover")
        details = {"top1_before": before, "top1_after": history.best_top1, "curve": history.epochs}
        if history.best_top1 < before:
            note = f"Recovery only reached {history.best_top1:.2f}% of {before:.2f}% on validation, so it was undone."
            return model, Report("recover", (note,), details | {"top1_after": before})
        return student.eval(), Report("recover", (), details)
