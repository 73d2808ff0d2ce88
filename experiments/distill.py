"""Distil a teacher into one student with any loss, also on many GPUs.

Example: accelerate launch -m experiments.distill --config my.yaml, where my.yaml holds
`loss: {class_path: my_module.MyLoss}` and my_module.py lies beside it or on PYTHONPATH.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import students
import teachers
from experiments import cli, train_teacher
from experiments.config import ObjectiveConfig, StudentConfig, TeacherConfig, blueprint, seeded
from experiments.steps import Outcome, Run, in_main_process
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.fit import Fit, fit
from kd.loss import Loss, Objective
from kd.losses import KD
from kd.regimes import Offline, Supervised
from students import Blueprint


@dataclass(frozen=True)
class DistillConfig:
    """Distil one student.

    Attributes:
        out: the run folder.
        seed: of weights, order and dropout (the split has its own: data.seed).
        data: what both learn from.
        teacher: the large model.
        student: the small model.
        loss: the distillation loss, by import path.
        objective: how it is weighed against the labels.
        fit: how the student is trained.
    """

    out: str = "runs/distill"
    seed: int = 0
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    loss: Loss = field(default_factory=KD)
    objective: ObjectiveConfig = ObjectiveConfig()
    fit: Fit = Fit()


def distill(
    plan: Blueprint,
    teacher: teachers.AnyTeacher,
    data: Data,
    objective: Objective,
    config: Fit,
    folder: Path,
    seed: int,
) -> Outcome:
    """The step: a student of this blueprint learns from the teacher; leaves a model folder."""
    schedule = seeded(config, seed)
    regime = Offline(plan.build(), teacher, objective)
    history = fit(regime, data, schedule, folder, label="student")
    in_main_process(lambda: students.save(regime.deploy(history.best_name), folder))
    return Outcome("student", seconds=history.seconds, curve=history.epochs)


def from_scratch(plan: Blueprint, data: Data, config: Fit, folder: Path, seed: int) -> Outcome:
    """The baseline: the same net, weights drawn, data, order, epochs and optimiser, but labels only."""
    schedule = seeded(config, seed)
    student = plan.build()
    history = fit(Supervised(student), data, schedule, folder, label="from scratch")
    in_main_process(lambda: students.save(student, folder))
    return Outcome("scratch", seconds=history.seconds, curve=history.epochs)


def main(config: DistillConfig, resolved: str) -> None:
    data = load_data(config.data)
    train_teacher.check(config.teacher, data)
    plan = blueprint(config.student.name, config.student.width, config.student.depth, data)
    plan.build("meta")
    run = Run(Path(config.out), resolved, cli.command("distill"))
    objective = config.objective.build(config.loss)
    teacher = train_teacher.guide(config.teacher, data, run, config.seed, objective().asks)
    run.step("student", lambda folder: distill(plan, teacher, data, objective(), config.fit, folder, config.seed))


if __name__ == "__main__":
    sys.exit(cli.run("distill", DistillConfig, main))
