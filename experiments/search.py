"""Search a student by short distillations: accurate, light, and whatever else is asked for.

Example: python -m experiments.search --out runs/search --data.source digits --search.trials 12
The same command again goes on; started several times side by side, all processes work on the same search.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.trial import FixedTrial

import students
import teachers
from experiments import cli, train_teacher
from experiments.config import ObjectiveConfig, SpaceConfig, TeacherConfig
from experiments.steps import Outcome, Run, in_main_process
from kd.checkpoint import atomic_write, load_json, save_json
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.errors import InputError
from kd.loss import Loss, Objective
from kd.losses import KD
from search import Candidate, SearchConfig, Space
from search import run as run_study


@dataclass(frozen=True)
class SearchCommandConfig:
    """Search a student.

    Attributes:
        out: the run folder.
        seed: of the sampler and of every trial (the split has its own: data.seed).
        data: what all learn from.
        teacher: the large model.
        space: what is chosen from.
        search: for what, how long, and how each candidate is trained.
        loss: the distillation loss, by import path.
        objective: how it is weighed against the labels.
    """

    out: str = "runs/search"
    seed: int = 0
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    space: SpaceConfig = SpaceConfig()
    search: SearchConfig = SearchConfig()
    loss: Loss = field(default_factory=KD)
    objective: ObjectiveConfig = ObjectiveConfig()


def find(
    space: Space,
    config: SearchConfig,
    teacher: teachers.AnyTeacher,
    data: Data,
    objective: Callable[[], Objective],
    folder: Path,
    seed: int,
    inherit: str | None = None,
) -> Outcome:
    """The step: leaves the study, trials.json and the chosen blueprint.json."""
    result = run_study(space, data, teacher, replace(config, seed=seed), folder, objective, _source(inherit, teacher))
    details: dict[str, Any] = {
        "goals": config.goals,
        "trials": result.trials,
        "front": result.front,
        "chosen": result.chosen,
        "rank_correlation": result.rank_correlation(),
    }

    def write() -> None:
        save_json(folder / "trials.json", details)
        atomic_write(folder / "blueprint.json", result.chosen["blueprint"])

    in_main_process(write)
    trained = [trial for trial in result.trials if trial["seconds"] is not None]
    epochs, seconds = (sum(trial[name] for trial in trained) for name in ("epochs", "seconds"))
    best = result.blueprint
    note = f"{len(trained)} students were trained for {epochs} epochs in all, in {seconds:.0f} s; the chosen one: "
    note += f"{best.name} at width {_told(best.width)} and depth {_told(best.depth)}."
    if config.zero_cost:
        told = {name: ranks["spearman"] for name, ranks in details["rank_correlation"].items()}
        ranks = ", ".join(f"{name} {'–' if rank is None else f'{rank:.2f}'}" for name, rank in told.items())
        note += f" Rank correlation (Spearman) with what was trained: {ranks}."
    return Outcome("search", notes=(note,), details=details)


def _told(factors: students.Factors) -> str:
    return " ".join(f"{factor:.2f}" for factor in (factors if isinstance(factors, tuple) else (factors,)))


def _source(inherit: str | None, teacher: teachers.AnyTeacher) -> students.Classifier | None:
    if inherit is None:
        return None
    if inherit != "teacher":
        return students.load(Path(inherit))
    model = getattr(getattr(teacher, "teacher", teacher), "model", None)  # of stored answers: whose they are
    if not isinstance(model, students.Classifier):
        raise InputError("space.inherit", inherit, "needs one teacher whose blueprint is known")
    return model


def chosen(folder: Path, space: Space) -> Candidate:
    """The candidate that `find` chose."""
    return space(FixedTrial(load_json(folder / "trials.json")["chosen"]["suggested"]))


def main(config: SearchCommandConfig, resolved: str) -> None:
    data = load_data(config.data)
    train_teacher.check(config.teacher, data)
    space = config.space.build(data)
    run = Run(Path(config.out), resolved, cli.command("search"))
    objective = config.objective.build(config.loss)
    teacher = train_teacher.guide(config.teacher, data, run, config.seed, objective().asks)

    def work(folder: Path) -> Outcome:
        return find(space, config.search, teacher, data, objective, folder, config.seed, config.space.inherit)

    run.step("search", work, shared=True)


if __name__ == "__main__":
    sys.exit(cli.run("search", SearchCommandConfig, main))
