"""Prune one net by several importances side by side, in one go and in rounds, and recover it from its unpruned self.

Example: python -m experiments.compare_pruning --out runs/pruning --importances "[l2,taylor]" --speedups "[2.1,2.6]"
All rows have the same epochs of recovery, whatever the rounds. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import students
from compress import Context, Prune, Recover, load_artefact
from compress.cost import Cost, measure
from compress.importance import IMPORTANCES
from compress.repeat import Repeat
from experiments import cli, train_teacher
from experiments.compress import apply
from experiments.config import ObjectiveConfig, TeacherConfig
from experiments.render.figures import MISSING, spread
from experiments.render.markdown import table
from experiments.steps import Outcome, Run, in_main_process
from kd.checkpoint import atomic_write, load_json, save_json
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import Fit
from kd.loss import Loss
from kd.losses import KD

SPLITS = ("val", "test")
Row = dict[str, Any]


@dataclass(frozen=True)
class CompareConfig:
    """Compare importances.

    Attributes:
        out: the run folder.
        importances: by what channels are judged; see `compress.importance`.
        speedups: how many times fewer MACs.
        rounds: in how many rounds, each of pruning and recovery; 1: in one go.
        epochs: of recovery, those of all rounds together.
        lr: of recovery; None: that of the fit.
        seeds: of whatever is drawn, and of the order of the samples; the teacher has seed 0.
        data: for calibration, recovery, validation and test.
        teacher: the net that is pruned, and whom it then learns from.
        loss: the distillation loss of recovery, by import path.
        objective: how it is weighed against the labels.
        fit: how recovery trains.
    """

    out: str = "runs/compare-pruning"
    importances: tuple[str, ...] = ("l2", "l1", "bn", "random")
    speedups: tuple[float, ...] = (2.1, 2.6)
    rounds: tuple[int, ...] = (1, 2)
    epochs: int = 4
    lr: float | None = None
    seeds: tuple[int, ...] = (0,)
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    loss: Loss = field(default_factory=KD)
    objective: ObjectiveConfig = ObjectiveConfig()
    fit: Fit = Fit()

    def __post_init__(self) -> None:
        for name in ("importances", "speedups", "rounds", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(name, list(values), "must be different ones, at least one")
        for name in self.importances:
            if name not in IMPORTANCES:
                raise InputError("importances", name, f"unknown; known: {', '.join(IMPORTANCES)}")
        if not min(self.speedups) > 1:
            raise InputError("speedups", list(self.speedups), "must be above 1")
        for rounds in self.rounds:
            if rounds < 1 or self.epochs < 1 or self.epochs % rounds:
                raise InputError("rounds", rounds, f"must share the {self.epochs} epochs of recovery equally")
        if isinstance(self.teacher.source, tuple):
            raise InputError("teacher.source", list(self.teacher.source), "must be one net: it is pruned")


class Way(NamedTuple):
    """A row of the table: how the net is pruned."""

    importance: str
    speedup: float
    rounds: int

    @property
    def folder(self) -> str:
        return f"{self.importance}/{self.speedup:g}x/rounds-{self.rounds}"

    def stage(self, config: CompareConfig) -> Repeat:
        """Each round takes the same share of the MACs that are left, and has the same epochs."""
        prune = Prune(1 / self.speedup, importance=self.importance, round_to=1)  # layers of 16 channels
        return Repeat(self.rounds, (prune, Recover(config.epochs // self.rounds, config.lr)))

    def pruned(self, folder: Path) -> Path:
        """Where `stage` leaves the net of the last round before it is recovered."""
        return folder / f"round-{self.rounds}/01-prune"


def compare(folders: dict[Way, list[Path]], whole: students.Classifier, data: Data, out: Path) -> Outcome:
    """The step: scores every net on validation and test, and writes table.json and table.md."""
    cost = measure(whole, data.facts.image_shape)
    rows = [_row(way, places, cost, data) for way, places in folders.items()]
    told = {"command": cli.command("compare_pruning"), "whole": _scores(whole, data), "rows": rows}

    def write() -> None:
        save_json(out / "table.json", told)
        atomic_write(out / "table.md", _markdown(told))

    in_main_process(write)
    return Outcome("comparison")


def _row(way: Way, places: list[Path], whole: Cost, data: Data) -> Row:
    costs = [measure(load_artefact(place), data.facts.image_shape) for place in places]
    return way._asdict() | {
        "macs": [cost.macs / whole.macs for cost in costs],
        "params": [cost.params / whole.params for cost in costs],
        "pruned": [_scores(load_artefact(way.pruned(place)), data) for place in places],
        "recovered": [_scores(load_artefact(place), data) for place in places],
        "seconds": [load_json(place / "step.json")["seconds"] for place in places],
    }


def _scores(model: Any, data: Data) -> dict[str, float]:
    return {split: evaluate(model, data.evaluation(split)).top1 for split in SPLITS}


COLUMNS = [(split, when) for split in SPLITS for when in ("pruned", "recovered")]
HEAD = ("importance", "rounds", "fewer MACs", "fewer params", *map(", ".join, COLUMNS), "seconds")


def _markdown(told: dict[str, Any]) -> str:
    whole = [MISSING if when == "pruned" else f"{told['whole'][split]:.2f}" for split, when in COLUMNS]
    lines = [["whole", MISSING, "1.00×", "1.00×", *whole, MISSING]]
    for row in told["rows"]:
        fewer = [f"{spread([1 / share for share in row[cost]])}×" for cost in ("macs", "params")]
        scores = [spread([score[split] for score in row[when]]) for split, when in COLUMNS]
        lines.append([row["importance"], str(row["rounds"]), *fewer, *scores, spread(row["seconds"], 0)])
    return table(HEAD, lines, numbers=True) + "\n"


def main(config: CompareConfig, resolved: str) -> None:
    data = load_data(config.data)
    train_teacher.check(config.teacher, data)
    ways = [Way(*each) for each in product(config.importances, config.speedups, config.rounds)]
    stages = {way: way.stage(config) for way in ways}
    run = Run(Path(config.out), resolved, cli.command("compare_pruning"))
    objective = config.objective.build(config.loss)
    teacher = train_teacher.guide(config.teacher, data, run, 0, objective().asks)
    start = run.out / "teacher"
    whole = students.load(start)
    folders: dict[Way, list[Path]] = {way: [] for way in ways}
    for seed in config.seeds:
        fit = replace(config.fit, seed=seed)
        for way, stage in stages.items():

            def work(folder: Path, stage: Repeat = stage, fit: Fit = fit, seed: int = seed) -> Outcome:
                return apply(stage, start, Context(data, teacher, folder, fit, objective, seed, reference=whole))

            folders[way].append(run.step(f"{way.folder}/seed-{seed}", work))
    run.step("comparison", lambda _: compare(folders, whole, data, run.out))
    in_main_process(lambda: print((run.out / "table.md").read_text(), end=""))


if __name__ == "__main__":
    sys.exit(cli.run("compare_pruning", CompareConfig, main))
