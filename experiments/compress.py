"""Put a trained model through stages: prune, factorise, recover, export, quantise, in any order that makes sense.

Example: python -m experiments.compress --out runs/small --model runs/distill/student --teacher.source runs/distill
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import students
from compress import CodedModel, Context, Stage, load_artefact, save_artefact
from experiments import cli, train_teacher
from experiments.config import ObjectiveConfig, TeacherConfig
from experiments.steps import Outcome, Run
from kd.data import DataConfig
from kd.data import load as load_data
from kd.errors import InputError
from kd.fit import Fit
from kd.loss import Loss
from kd.losses import KD


@dataclass(frozen=True)
class CompressConfig:
    """Compress one model.

    Attributes:
        out: the run folder.
        seed: of whatever a stage draws (the split has its own: data.seed).
        model: the model folder, or coded file, to start from.
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


def name(number: int, stage: Stage, under: str = "") -> str:
    """The folder of a stage: stages/01-prune."""
    return f"{under}stages/{number:02d}-{type(stage).__name__.lower()}"


def apply(stage: Stage, before: Path, context: Context) -> Outcome:
    """The step: one stage, from the artefact folder `before` to the context's."""
    torch.manual_seed(context.seed)
    model, report = stage(load_artefact(before), context)
    save_artefact(model, context.folder)
    details = dict(report.details)
    curve = details.pop("curve", None)
    return Outcome(type(stage).__name__.lower(), notes=report.notes, details=details, curve=curve)


def compress(stages: Sequence[Stage], start: Path, run: Run, context: Context, under: str = "") -> Path:
    """All stages as steps of `run`, from the model folder `start`, to which their targets are relative.

    Returns the folder of the last artefact; `under` begins the names of the steps.
    """
    context = replace(context, fit=replace(context.fit, seed=context.seed), reference=students.load(start))
    before = start
    for number, stage in enumerate(stages, 1):

        def work(folder: Path, stage: Stage = stage, before: Path = before) -> Outcome:
            return apply(stage, before, replace(context, folder=folder))

        before = run.step(name(number, stage, under), work)
    return before


def opened(path: Path) -> students.Classifier:
    """The model in a folder, or decoded from a coded file. Raises InputError for any other file."""
    if not path.is_file():
        return students.load(path)
    found = load_artefact(path)
    if not isinstance(found, CodedModel):
        raise InputError("model", str(path), "is a file that runs: stages start from a model folder or a coded file")
    return found.classifier


def keep(model: students.Classifier, folder: Path) -> Outcome:
    """The step: the model to start from, so that the run folder stands alone."""
    students.save(model, folder)
    return Outcome("student", seconds=0.0)


def main(config: CompressConfig, resolved: str) -> None:
    data, seed = load_data(config.data), config.seed
    train_teacher.check(config.teacher, data)
    model = opened(Path(config.model))
    if model.blueprint.num_classes != data.facts.classes:
        raise InputError("model", config.model, f"does not have the {data.facts.classes} classes of the data")
    if not config.stages:
        raise InputError("stages", "[]", "name at least one, such as compress.Prune")
    run = Run(Path(config.out), resolved, cli.command("compress"))
    objective = config.objective.build(config.loss)
    teacher = train_teacher.guide(config.teacher, data, run, seed, objective().asks)
    start = run.step("student", lambda folder: keep(model, folder))
    compress(config.stages, start, run, Context(data, teacher, start, config.fit, objective, seed))


if __name__ == "__main__":
    sys.exit(cli.run("compress", CompressConfig, main))
