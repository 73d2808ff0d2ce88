"""Search the width and depth of a student by short distillations: accuracy up, multiply-accumulates down.

Example: python -m experiments.search --out runs/search --data.source digits --search.trials 12
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import teachers
from experiments import cli, train_teacher
from experiments.config import ObjectiveConfig, TeacherConfig, blueprint
from experiments.steps import Outcome, Run
from kd.checkpoint import atomic_write
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.loss import Loss, Objective
from kd.losses import KD
from search import SearchConfig, uniform
from search import run as run_study
from students import Blueprint


@dataclass(frozen=True)
class SearchCommandConfig:
    """Search a student.

    Attributes:
        out: the run folder.
        seed: of the sampler and of every trial (the split has its own: data.seed).
        data: what all learn from.
        teacher: the large model.
        search: the space, the number of trials and how each is trained.
        loss: the distillation loss, by import path.
        objective: how it is weighed against the labels.
    """

    out: str = "runs/search"
    seed: int = 0
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    search: SearchConfig = SearchConfig()
    loss: Loss = field(default_factory=KD)
    objective: ObjectiveConfig = ObjectiveConfig()


def check(config: SearchConfig, data: Data) -> None:
    """Raise InputError where the ends of the space cannot be built for this data."""
    for width, depth in zip(config.width, config.depth, strict=True):
        blueprint(config.name, width, depth, data).build("meta")


def find(
    config: SearchConfig,
    teacher: teachers.AnyTeacher,
    data: Data,
    objective: Callable[[], Objective],
    folder: Path,
    seed: int,
) -> Outcome:
    """The step: leaves the study's journal, trials.json and the chosen blueprint.json."""
    space = uniform(blueprint(config.name, 1.0, 1.0, data), width=config.width, depth=config.depth)
    result = run_study(space, data, teacher, replace(config, seed=seed), folder, objective)
    details = {"trials": result.trials, "front": result.front}
    atomic_write(folder / "trials.json", json.dumps(details, indent=1))
    atomic_write(folder / "blueprint.json", result.chosen.to_json())
    seconds = [trial["seconds"] for trial in result.trials if trial["seconds"] is not None]
    best, epochs = result.chosen, config.fit.epochs
    note = f"{len(seconds)} students were trained for {epochs} epochs each in {sum(seconds):.0f} s; the chosen one: "
    note += f"{best.name} at width {best.width:.2f} and depth {best.depth:.2f}."
    return Outcome("search", notes=(note,), details=details)


def chosen(folder: Path) -> Blueprint:
    """The blueprint that `find` chose."""
    return Blueprint.from_json((folder / "blueprint.json").read_text())


def main(config: SearchCommandConfig, resolved: str) -> None:
    data = load_data(config.data)
    train_teacher.check(config.teacher, data)
    check(config.search, data)
    run = Run(Path(config.out), resolved, cli.command("search"))
    objective = config.objective.build(config.loss)
    teacher = train_teacher.guide(config.teacher, data, run, config.seed, objective().asks)
    run.step("search", lambda folder: find(config.search, teacher, data, objective, folder, config.seed))


if __name__ == "__main__":
    sys.exit(cli.run("search", SearchCommandConfig, main))
