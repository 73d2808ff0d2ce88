"""Search in several ways side by side: does a search find more than uniform scaling does in the same epochs?

Example: python -m experiments.compare_searches --out runs/compare-searches --search.epochs 72 --search.rungs "[2,4]"
The same command again goes on where it was stopped.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from optuna.trial import BaseTrial

import search
from compress import load_artefact
from compress.cost import macs
from experiments import cli, train_teacher
from experiments.config import ObjectiveConfig, SpaceConfig, TeacherConfig, blueprint
from experiments.render.figures import MISSING, spread
from experiments.render.markdown import table
from experiments.search import find
from experiments.steps import Outcome, Run, in_main_process
from kd.checkpoint import atomic_write, load_json, save_json
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.loss import Loss
from kd.losses import KD
from search import Budget, Candidate, SearchConfig, Space
from search.pareto import ACCURATE_AND_LIGHT, Point, share
from students import Blueprint

SEARCH, UNIFORM = "search", "uniform"
SPLITS = ("val", "test")
CLAIM = 2.0  # standard errors beyond which a difference is called one
Row = dict[str, Any]
Rows = dict[str, list[Row]]  # of each way by seed


@dataclass(frozen=True)
class CompareConfig:
    """Compare searches.

    Attributes:
        out: the run folder.
        seeds: of the proposals and of the candidates' weights; the teacher has seed 0.
        data: what all learn from.
        teacher: the large model.
        space: one family and the ranges of its width and depth. Its largest net is scaled uniformly too, down to the
            least width.
        search: the search that is compared. Each way spends `epochs`, or where that is None those of all its `trials`.
        loss: the distillation loss, by import path.
        objective: how it is weighed against the labels.
    """

    out: str = "runs/compare-searches"
    seeds: tuple[int, ...] = (0, 1, 2)
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    space: SpaceConfig = SpaceConfig()
    search: SearchConfig = SearchConfig()
    loss: Loss = field(default_factory=KD)
    objective: ObjectiveConfig = ObjectiveConfig()

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError("seeds", list(self.seeds), "must be different ones, at least one")
        plain = SpaceConfig(self.space.name, width=self.space.width, depth=self.space.depth, step=self.space.step)
        if self.space != plain or not isinstance(self.space.name, str):
            raise InputError("space", self.space.name, "must be of one family, with a width, a depth and a step alone")
        if self.search.goals != ACCURATE_AND_LIGHT or self.search.budget != Budget():
            raise InputError("search", list(self.search.goals), "must be for top1 and macs, without a budget")
        if self.epochs < 2 * self.search.fit.epochs:
            raise InputError("search.epochs", self.epochs, f"must be at least twice {self.search.fit.epochs}")

    @property
    def epochs(self) -> int:
        return self.search.epochs or self.search.trials * self.search.fit.epochs


def scaled(base: Blueprint, factors: Sequence[float]) -> Space:
    """`base` with one factor more on both its width and its depth, out of these."""

    def space(trial: BaseTrial) -> Candidate:
        factor = float(trial.suggest_categorical("factor", factors))
        return Candidate(replace(base, width=factor * base.width, depth=factor * base.depth))

    return space


def largest(space: SpaceConfig, data: Data) -> Blueprint:
    return blueprint(str(space.name), space.width[1], space.depth[1], data)


def ways(config: CompareConfig, data: Data) -> dict[str, tuple[Space, SearchConfig]]:
    """The space and the search of each way by its name. All spend the same epochs; only "search" may stop early.

    Uniform scaling tries the largest net of the space at as many evenly spaced factors as can be trained.
    """
    plan, space, (narrow, wide) = config.search, config.space.build(data), config.space.width
    count = config.epochs // plan.fit.epochs
    factors = [1 - (1 - narrow / wide) * number / (count - 1) for number in range(count)]
    full = replace(plan, epochs=config.epochs, trials=count, rungs=())
    most = -(-config.epochs // min(plan.rungs, default=plan.fit.epochs))
    found = {SEARCH: (space, replace(full, trials=most, rungs=plan.rungs))}
    if plan.rungs:
        found["search without rungs"] = space, full
    found |= {name: (space, replace(full, sampler=name)) for name in ("nsga2", "random")}
    return found | {UNIFORM: (scaled(largest(config.space, data), factors), replace(full, sampler="grid"))}


def within(trials: Sequence[Row], epochs: int) -> list[Row]:
    """The trained and stopped candidates up to that number of epochs: one that ends beyond it does not count."""
    tried = [trial for trial in trials if trial["epochs"] is not None]
    spent = accumulate(trial["epochs"] for trial in tried)
    return [trial for trial, total in zip(tried, spent, strict=True) if total <= epochs]


def judge(folder: Path, epochs: int, data: Data, reference: Point) -> Row:
    """What the search in `folder` found: its front is chosen on validation, and scored on test too."""
    tried = within(load_json(folder / "trials.json")["trials"], epochs)
    front = [
        {name: point[name] for name in ("key", "width", "depth", "params", "macs", "top1")}
        for point in search.front(trial for trial in tried if trial["state"] == "trained")
    ]
    for point in front:
        model = load_artefact(folder / "trials" / point["key"])
        point["top1_test"] = evaluate(model, data.evaluation("test")).top1
    return {
        "val": share(front, reference),
        "test": share([point | {"top1": point["top1_test"]} for point in front], reference),
        "networks": len(tried),
        "epochs": sum(trial["epochs"] for trial in tried),
        "seconds": sum(trial["seconds"] for trial in tried),
        "front": front,
    }


def compare(folders: dict[str, list[Path]], config: CompareConfig, data: Data, out: Path) -> Outcome:
    """The step: scores every front and writes table.json and table.md."""
    whole = macs(largest(config.space, data).build("meta"), data.facts.image_shape)
    reference = {"top1": 100 / data.facts.classes, "macs": whole}
    rows = {name: [judge(place, config.epochs, data, reference) for place in folders[name]] for name in folders}
    said = [verdict(split, other, _above(rows, other, split)) for split in SPLITS for other in rows if other != SEARCH]
    told = {"command": cli.command("compare_searches"), "epochs": config.epochs, "seeds": config.seeds}
    told |= {"reference": reference, "rows": rows, "said": said}

    def write() -> None:
        save_json(out / "table.json", told)
        atomic_write(out / "table.md", _markdown(rows) + "\n\n" + "".join(f"- {sentence}\n" for sentence in said))

    in_main_process(write)
    return Outcome("comparison")


def verdict(split: str, other: str, above: Sequence[float]) -> str:
    """What the differences by seed, search less the other, allow to say."""
    count, mean = len(above), statistics.mean(above)
    if count == 1:
        return f"On {split} {SEARCH} less {other} is {mean:+.4f}: one seed shows nothing."
    error = statistics.stdev(above) / count**0.5
    figures = f"{mean:+.4f} ± {error:.4f}, mean and standard error of {count} seeds"
    if abs(mean) <= CLAIM * error:
        return f"On {split} no difference between {SEARCH} and {other} is shown: {figures}."
    return f"On {split} {SEARCH} covers {'more' if mean > 0 else 'less'} than {other}: {figures}."


COUNTS = ("networks", "epochs", "seconds")
HEAD = ("way", "seeds", *COUNTS, "volume, val", f"less {UNIFORM}'s", "volume, test", f"less {UNIFORM}'s")


def _markdown(rows: Rows) -> str:
    lines = []
    for name, found in rows.items():
        cells = [str(len(found)), *(spread([row[count] for row in found], 1) for count in COUNTS)]
        for split in SPLITS:
            less = _above(rows, UNIFORM, split, name)
            cells += [spread([row[split] for row in found], 4), MISSING if name == UNIFORM else spread(less, 4)]
        lines.append((name, *cells))
    return table(HEAD, lines, numbers=True)


def _above(rows: Rows, other: str, split: str, name: str = SEARCH) -> list[float]:
    """By how much one way is above another, by seed."""
    return [mine[split] - theirs[split] for mine, theirs in zip(rows[name], rows[other], strict=True)]


def main(config: CompareConfig, resolved: str) -> None:
    data = load_data(config.data)
    train_teacher.check(config.teacher, data)
    searches = ways(config, data)
    run = Run(Path(config.out), resolved, cli.command("compare_searches"))
    objective = config.objective.build(config.loss)
    teacher = train_teacher.guide(config.teacher, data, run, 0, objective().asks)
    folders: dict[str, list[Path]] = {name: [] for name in searches}
    for seed in config.seeds:
        for name, (space, plan) in searches.items():

            def work(folder: Path, space: Space = space, plan: SearchConfig = plan, seed: int = seed) -> Outcome:
                return find(space, plan, teacher, data, objective, folder, seed)

            folders[name].append(run.step(f"{name.replace(' ', '-')}/seed-{seed}", work))
    run.step("comparison", lambda _: compare(folders, config, data, run.out))
    in_main_process(lambda: print((run.out / "table.md").read_text(), end=""))


if __name__ == "__main__":
    sys.exit(cli.run("compare_searches", CompareConfig, main))
