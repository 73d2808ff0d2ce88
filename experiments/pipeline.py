"""From a data set to a small model that can be deployed, and an honest report: one command, one run folder.

data -> teacher -> search -> student (and the same from scratch) -> stages -> report

Example: python -m experiments.pipeline --out runs/digits
The same command again skips what is done and goes on where it was stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from compress import Context, Stage
from experiments import cli, compress, distill, report, search, train_teacher
from experiments.config import ObjectiveConfig, SpaceConfig, TeacherConfig
from experiments.report import ReportConfig
from experiments.steps import Run
from kd.data import DataConfig
from kd.data import load as load_data
from kd.errors import InputError
from kd.fit import Fit
from kd.loss import Loss
from kd.losses import KD
from kd.processes import processes
from search import SearchConfig


@dataclass(frozen=True)
class PipelineConfig:
    """The main job.

    Attributes:
        out: the run folder.
        seed: of weights, order, dropout and the search (the split has its own: data.seed).
        data: what all learn from.
        teacher: the large model.
        space: the students that are searched.
        search: for what, how long, and how each candidate is trained.
        loss: the distillation loss, by import path.
        objective: how it is weighed against the labels.
        fit: how the chosen student is trained, distilled and from scratch.
        stages: what is done to it afterwards, by import path.
        report: how the artefacts are measured.
    """

    out: str = "runs/digits"
    seed: int = 0
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    space: SpaceConfig = SpaceConfig()
    search: SearchConfig = SearchConfig()
    loss: Loss = field(default_factory=KD)
    objective: ObjectiveConfig = ObjectiveConfig()
    fit: Fit = Fit()
    stages: list[Stage] = field(default_factory=list)
    report: ReportConfig = ReportConfig()


def main(config: PipelineConfig, resolved: str) -> None:
    if processes().num_processes > 1:
        raise InputError("num_processes", processes().num_processes, "the pipeline is one process; distill takes many")
    if isinstance(config.teacher.source, tuple):
        raise InputError("teacher.source", config.teacher.source, "the report measures one teacher; distill takes many")
    data, seed, objective = load_data(config.data), config.seed, config.objective.build(config.loss)
    train_teacher.check(config.teacher, data)
    space = config.space.build(data)
    run = Run(Path(config.out), resolved, cli.command("pipeline"))

    teacher = train_teacher.guide(config.teacher, data, run, seed, objective().asks)
    inherit = config.space.inherit
    found = run.step(
        "search", lambda folder: search.find(space, config.search, teacher, data, objective, folder, seed, inherit)
    )
    candidate = search.chosen(found, space)
    plan, objective = candidate.blueprint, candidate.objective or objective
    run.step("scratch", lambda folder: distill.from_scratch(plan, data, config.fit, folder, seed))
    student = run.step(
        "student", lambda folder: distill.distill(plan, teacher, data, objective(), config.fit, folder, seed)
    )
    compress.compress(config.stages, student, run, Context(data, teacher, student, config.fit, objective, seed))
    run.step("report", lambda folder: report.measure(run.out, data, config.report))
    report.show(run.out)


if __name__ == "__main__":
    sys.exit(cli.run("pipeline", PipelineConfig, main))
