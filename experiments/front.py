"""Retrain the front that a search found: in full, over seeds, exported, and measured together with the teacher.

Example: python -m experiments.front --found runs/search --out runs/front --seeds "[0, 1, 2]"
The search ranked its candidates by short trainings; what they are worth is seen here. Only the last step reads the test
split. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from optuna.trial import FixedTrial

from compress import Context, Export
from compress.artefact import ONNX
from experiments import cli, compress, distill, front_report, train_teacher
from experiments.front_report import Found, Record, Retrained
from experiments.report import ReportConfig
from experiments.steps import Outcome, Run
from kd.console import say
from kd.data import load as load_data
from kd.errors import DivergedError, InputError
from kd.fit import Fit
from kd.processes import processes
from search import Candidate


@dataclass(frozen=True)
class FrontConfig:
    """Retrain a front.

    Attributes:
        out: the run folder.
        found: the run folder of a search or a pipeline: it tells data, teacher, space and losses, and holds the front.
        seeds: of weights, order and dropout.
        most: candidates to retrain, spread over the front where that has more.
        fit: how each is trained; weights are drawn, also where those of the search's candidates were inherited.
        report: how they are measured.
    """

    out: str = "runs/front"
    found: str = "runs/search"
    seeds: tuple[int, ...] = (0, 1, 2)
    most: int = 8
    fit: Fit = Fit()
    report: ReportConfig = ReportConfig()

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError("seeds", list(self.seeds), "name at least one, each once")
        if self.most < 2:
            raise InputError("most", self.most, "must be 2 or more: the ends of the front")


def spread(points: Sequence[Record], most: int) -> list[Record]:
    """At most `most` of the points, both ends among them."""
    places = np.linspace(0, len(points) - 1, min(most, len(points)))
    return [points[place] for place in places.round().astype(int)]


def learn(candidate: Candidate, context: Context) -> Outcome:
    """The step: a candidate learns from the teacher in full; leaves a model folder, unless it diverged."""
    try:
        return distill.distill(
            candidate.blueprint,
            context.teacher,
            context.data,
            context.objective(),
            context.fit,
            context.folder,
            context.seed,
        )
    except DivergedError as error:  # a result too, and no reason to lose the others
        say(str(error))
        return Outcome("diverged", notes=(str(error),))


def retrain(candidate: Candidate, run: Run, under: str, context: Context) -> tuple[Path, Path] | None:
    """Steps: full distillation, the candidate's stages, export.

    Returns the folder of the artefact before it was exported, if no stage did that, and the file; None: it diverged.
    """
    context = replace(context, objective=candidate.objective or context.objective)
    student = run.step(f"{under}student", lambda folder: learn(candidate, replace(context, folder=folder)))
    if not (student / "blueprint.json").exists():
        return None
    last = exported = compress.compress(candidate.stages, student, run, context, under)
    if not (last / ONNX).exists():
        exported = run.step(
            f"{under}export", lambda folder: compress.apply(Export(), last, replace(context, folder=folder))
        )
    return last, exported / ONNX


def main(config: FrontConfig, resolved: str) -> None:
    if processes().num_processes > 1:
        raise InputError("num_processes", processes().num_processes, "the front is retrained by one process")
    found, out = Found.read(Path(config.found)), Path(config.out)
    made = found.config
    data, objective = load_data(made.data), made.objective.build(made.loss)
    space, points = made.space.build(data), spread(found.front, config.most)
    settings = found.sections | yaml.safe_load(resolved) | {"front": [point["key"] for point in points]}
    run = Run(out, yaml.safe_dump(settings, sort_keys=False), cli.command("front"))

    live = train_teacher.open_teacher(made.teacher, found.teacher)
    teacher = train_teacher.answering(live, data, out / "answers", objective().asks)  # the search is left as it was
    context = Context(data, teacher, out, config.fit, objective)
    retrained = [Retrained(point) for point in points]
    for each in retrained:
        candidate = space(FixedTrial(each.record["suggested"]))
        for seed in config.seeds:
            under = f"{each.name}/seed-{seed}/"
            each.kept[seed] = retrain(candidate, run, under, replace(context, seed=seed))

    def work(folder: Path) -> Outcome:
        return front_report.measure(retrained, found, live, data, config.report, folder, out)

    run.step("front", work)
    front_report.show(out)


if __name__ == "__main__":
    sys.exit(cli.run("front", FrontConfig, main))
