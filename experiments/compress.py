"""Put a trained model through stages: prune, factorise, recover, export, quantise, in any order that makes sense.

Example: python -m experiments.compress --out runs/small --model runs/distill/student --teacher.source runs/distill
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import students
import teachers
from compress import Context, Stage, load_artefact, save_artefact
from experiments import cli, train_teacher
from experiments.config import ObjectiveConfig, TeacherConfig, seeded
from experiments.steps import Outcome, Run
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.errors import InputError
from kd.fit import Fit
from kd.loss import Loss, Objective
from kd.losses import KD


@dataclass(frozen=True)
class CompressConfig:
    """Compress one model.

    Attributes:
        out: the run folder.
        seed: of whatever a stage draws (the split has its own: data.seed).
        model: the model folder to start from.
        data: for calibration, recovery and validation.
        teacher: whom recovery learns from.
        stages: what is done, one after the other, by import path.
        loss: the distillation loss of recovery, by import path.
        objective: how it is weighed against the labels.
        fit: how recovery trains; a Recover stage shortens it.
    """

    model: str
    out: str = "runs/compress"
    seed: int = 0
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    stages: list[Stage] = field(default_factory=list)
    loss: Loss = field(default_factory=KD)
    objective: ObjectiveConfig = ObjectiveConfig()
    fit: Fit = Fit()


def name(number: int, stage: Stage) -> str:
    """The folder of a stage: stages/01-prune."""
    return f"stages/{number:02d}-{type(stage).__name__.lower()}"


def apply(
    stage: Stage,
    before: Path,
    reference: Path,
    teacher: teachers.Teacher | teachers.Cached,
    data: Data,
    objective: Callable[[], Objective],
    fit: Fit,
    folder: Path,
    seed: int,
) -> Outcome:
    """The step: one stage, from the artefact folder `before` to `folder`."""
    context = Context(
        data=data,
        teacher=teacher,
        folder=folder,
        fit=seeded(fit, seed),
        objective=objective,
        seed=seed,
        reference=students.load(reference),
    )
    model, report = stage(load_artefact(before), context)
    save_artefact(model, folder)
    return Outcome(type(stage).__name__.lower(), notes=report.notes, details=report.details)


def main(config: CompressConfig, resolved: str) -> None:
    data = load_data(config.data)
    train_teacher.check(config.teacher, data)
    start = Path(config.model)
    if students.load(start).blueprint.num_classes != data.facts.classes:
        raise InputError("model", config.model, f"does not have the {data.facts.classes} classes of the data")
    if not config.stages:
        raise InputError("stages", "[]", "name at least one, such as compress.Prune")
    run = Run(Path(config.out), resolved, cli.command("compress"))
    at = run.step("teacher", lambda folder: train_teacher.obtain(config.teacher, data, folder, config.seed))
    objective = config.objective.build(config.loss)
    teacher = train_teacher.guide(train_teacher.open_teacher(at), data, at / "answers", objective().needs)
    compress(config.stages, start, run, teacher, data, objective, config.fit, config.seed)


def compress(
    stages: list[Stage],
    start: Path,
    run: Run,
    teacher: teachers.Teacher | teachers.Cached,
    data: Data,
    objective: Callable[[], Objective],
    fit: Fit,
    seed: int,
) -> Path:
    """All stages as steps of `run`, from the model folder `start`; returns the folder of the last artefact."""
    before = start
    for number, stage in enumerate(stages, 1):

        def work(folder: Path, stage: Stage = stage, before: Path = before) -> Outcome:
            return apply(stage, before, start, teacher, data, objective, fit, folder, seed)

        before = run.step(name(number, stage), work)
    return before


if __name__ == "__main__":
    sys.exit(cli.run("compress", CompressConfig, main))
