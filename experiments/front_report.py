"""What a retrained front is worth: all files scored on validation and test, timed in turns, held against the search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from jsonargparse import ArgumentParser
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

import teachers
from compress import Export, OnnxModel, latency, load_artefact
from compress import measure as measure_cost
from experiments import cli
from experiments.render.figures import MISSING, count, milliseconds, percent, size, spread
from experiments.report import ReportConfig
from experiments.search import SearchCommandConfig
from experiments.steps import CONFIG, Outcome, settings
from kd.checkpoint import atomic_write, load_json, save_json
from kd.console import say
from kd.data import Data
from kd.errors import InputError
from kd.evaluate import Predict, evaluate
from search.pareto import share
from search.result import words
from search.storage import read_study
from search.study import RECORD

FEWEST = 4  # trials, below which importances and a contour tell nothing
SPLITS, BATCHES = ("val", "test"), ("batch1", "batch32")
Record = dict[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """A finished search.

    Attributes:
        folder: its run folder.
        sections: of its configuration, and `config`: the same, instantiated.
        trials, front: as `search.Result` has them.
    """

    folder: Path
    sections: Record
    config: SearchCommandConfig
    trials: list[Record]
    front: list[Record]

    @classmethod
    def read(cls, folder: Path) -> Found:
        """What `experiments.search` or the pipeline left. Raises InputError where there is nothing."""
        trials = folder / "search" / "trials.json"
        if not (folder / CONFIG).exists():
            raise InputError("found", str(folder), "is no run folder")
        if not trials.exists():
            raise InputError("found", str(folder), "holds no finished search")
        known = {field.name for field in fields(SearchCommandConfig)}
        sections = {name: value for name, value in settings(folder).items() if name in known}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(SearchCommandConfig, as_group=False)
        config = SearchCommandConfig(**vars(parser.instantiate(parser.parse_object(sections))))
        told = load_json(trials)
        return cls(folder, sections, config, told["trials"], told["front"])

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"


@dataclass(frozen=True)
class Retrained:
    """A candidate of the front.

    Attributes:
        record: what the search knows of it.
        kept: by seed the folder of its artefact, which is torch's unless a stage exported it, and its file; None where
            it diverged.
    """

    record: Record
    kept: dict[int, tuple[Path, Path] | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"trial-{self.record['number']:02d}"

    @property
    def trained(self) -> dict[int, tuple[Path, Path]]:
        return {seed: kept for seed, kept in self.kept.items() if kept is not None}


@dataclass(frozen=True)
class Volume:
    """Hypervolume in percent of the box from a reference point, chance at the teacher's cost, to all right at no cost.

    Attributes:
        goals: of the search.
        reference: a figure for each.
    """

    goals: Sequence[str]
    reference: Row

    def of(self, points: Iterable[Row]) -> float:
        return 100 * share(points, self.reference, self.goals)

    def by_seed(self, rows: Sequence[Row], split: str) -> list[float]:
        """Of what was retrained under each seed."""
        seeds = dict.fromkeys(seed for row in rows for seed in row["seeds"])
        return [self.of([_reached(row, split, seed) for row in rows if seed in row["seeds"]]) for seed in seeds]


def measure(
    retrained: Sequence[Retrained],
    found: Found,
    teacher: teachers.Teacher | teachers.Ensemble,
    data: Data,
    config: ReportConfig,
    folder: Path,
    out: Path,
) -> Outcome:
    """The step: leaves the exported teacher in `folder`, and front.json, front.md and the plots in `out`."""
    search = found.config.search
    above, rows = _measured(retrained, teacher, data, config, folder)
    volume = Volume(search.goals, {"top1": 100 / data.facts.classes} | _costs(above))
    trained = [trial for trial in found.trials if trial["state"] == "trained"]
    study = _of_accuracy(read_study(found.folder / "search", search.storage))
    report: Record = {
        "command": cli.command("front"),
        "goals": search.goals,
        "cost": search.cost,
        "teacher": above,
        "rows": rows,
        "trials": found.trials,
        "front": found.front,
        "diverged": {each.name: [seed for seed in each.kept if each.kept[seed] is None] for each in retrained},
        "reference": {goal: volume.reference[goal] for goal in search.goals},
        "hypervolume": {split: volume.by_seed(rows, split) for split in SPLITS}
        | {"found": volume.of([row["found"] for row in rows])}
        | {"by_trial": [(trial["number"], volume.of(trained[:n])) for n, trial in enumerate(trained, 1)]},
        "rank_correlation": {split: _rank_correlation(rows, split) for split in SPLITS},
        "importances": _importances(study),
    }
    of_teacher = load_json(found.teacher / "step.json")["notes"]
    report["notes"] = [*of_teacher, *_notes(report, len(retrained), study)]
    _write(report, study, out)
    return Outcome("front")


def show(out: Path) -> None:
    """The table, in the terminal: its 80 columns have no room for all of it."""
    report = load_json(out / "front.json")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    short = [heading.replace(", ", "\n") for heading in HEAD]
    for heading in _shown(short):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in (report["teacher"], *report["rows"]):
        table.add_row(*(cell.replace(" ", "") for cell in _shown(_cells(row))))
    Console().print(table, *report["notes"], sep="\n", markup=False, highlight=False)
    say(f"the report: {out / 'front.md'}")


def _shown(cells: Sequence[str]) -> list[str]:
    return [
        cell for cell, heading in zip(cells, HEAD, strict=True) if heading not in ("candidate", "n", "batch 32, ms")
    ]


def _measured(
    retrained: Sequence[Retrained],
    teacher: teachers.Teacher | teachers.Ensemble,
    data: Data,
    config: ReportConfig,
    folder: Path,
) -> tuple[Record, list[Record]]:
    """The teacher's row, and one for each candidate that was trained; costs are those of its first seed."""
    shape = data.facts.image_shape
    members = teacher.teachers if isinstance(teacher, teachers.Ensemble) else (teacher,)
    nets = [teachers.Adapted(member.model, member.image_size, member.channels) for member in members]
    parts: dict[str, tuple[Any, OnnxModel]] = {}
    for number, net in enumerate(nets):
        parts[f"teacher-{number}"] = net, Export().write(net, data, folder / f"teacher-{number}.onnx")
    large = list(parts)
    for each in retrained:
        for artefact, file in [*each.trained.values()][:1]:
            parts[each.name] = load_artefact(artefact), OnnxModel(file)
    say("front: latencies, the artefacts taking turns")
    files = {name: file for name, (_, file) in parts.items()}
    times = latency(files, shape, seconds=config.latency_seconds, threads=config.threads)

    def cost(names: Sequence[str]) -> Record:
        """Of several together: an ensemble has answered when all of its members have."""
        spent = [measure_cost(parts[name][0], shape) for name in names]
        return {
            "params": sum(each.params for each in spent),
            "macs": sum(each.macs for each in spent),
            "file_bytes": sum(files[name].path.stat().st_size for name in names),
            "latency_ms": {batch: sum(times[name][batch]["p50"] for name in names) for batch in BATCHES},
        }

    def top1(models: Sequence[Predict]) -> Record:
        scores = {split: [evaluate(model, data.evaluation(split)) for model in models] for split in SPLITS}
        return {f"top1_{split}": [each.top1 for each in told] for split, told in scores.items()}

    above = {"name": "teacher", "found": None} | top1([teacher.predict]) | cost(large)
    rows = []
    for each in retrained:
        if each.trained:
            known = {"name": each.name, "found": each.record, "seeds": list(each.trained)}
            rows.append(known | top1([OnnxModel(file) for _, file in each.trained.values()]) | cost([each.name]))
    return above, rows


def _reached(row: Row, split: str, seed: int) -> Record:
    """A row as a point of the search, by what it reached under one seed."""
    return _costs(row) | {"top1": row[f"top1_{split}"][row["seeds"].index(seed)]}


def _costs(row: Row) -> Record:
    """By the names that a search has for them."""
    return {name: row[name] for name in ("params", "macs", "file_bytes")} | {"latency_ms": row["latency_ms"]["batch1"]}


def _rank_correlation(rows: Sequence[Row], split: str) -> float | None:
    """Spearman's, of short with full training; None of fewer than three, or where all are alike."""
    short, full = [row["found"]["top1"] for row in rows], [fmean(row[f"top1_{split}"]) for row in rows]
    if min(len(rows), len(set(short)) + 1, len(set(full)) + 1) < 3:
        return None
    return float(spearmanr(short, full).statistic)


def _of_accuracy(study: optuna.Study) -> optuna.Study:
    """The trials that were trained to their end, with accuracy as the one goal.

    In the search's own study, for its sampler, what was not trained has an accuracy of 0.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    lone = optuna.create_study(direction="maximize")
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        record = trial.user_attrs[RECORD]
        if record["state"] == "trained":
            lone.add_trial(create_trial(params=trial.params, distributions=trial.distributions, value=record["top1"]))
    return lone


def _importances(study: optuna.Study) -> dict[str, float]:
    """The share of accuracy's variance that each parameter explains; nothing where too little is known."""
    if len(study.trials) < FEWEST or len({trial.value for trial in study.trials}) == 1:
        return {}
    told = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return told if len(told) > 1 else {}


def _notes(report: Row, retrained: int, study: optuna.Study) -> Iterator[str]:
    rows, shares = report["rows"], report["hypervolume"]
    if retrained < len(report["front"]):
        yield f"The front has {len(report['front'])} candidates; {retrained}, spread over it, were retrained."
    for name, seeds in report["diverged"].items():
        if seeds:
            yield f"{name} diverged under seed {', '.join(map(str, seeds))}, which its row leaves out."
    reference = ", ".join(f"{goal} {value:.4g}" for goal, value in report["reference"].items())
    yield (
        f"Hypervolume of these candidates, of the box from chance at the teacher's cost ({reference}) to 100 % at no "
        f"cost: {percent(shares['found'])} % as found, retrained {spread(shares['val'])} % on validation and "
        f"{spread(shares['test'])} % on test."
    )
    ranks = {split: MISSING if rank is None else f"{rank:.2f}" for split, rank in report["rank_correlation"].items()}
    yield (
        f"Rank correlation (Spearman) of top-1 after the search's training with the mean after the full one, over "
        f"{len(rows)} candidates: {ranks['val']} on validation, {ranks['test']} on test."
    )
    if not report["importances"]:
        yield (
            f"Importances and contour are left out: they take {FEWEST} trained trials that differ and two parameters "
            f"that were drawn, and there are {len(study.trials)} trials."
        )


HEAD = (
    *("", "candidate", "n", "params", "MACs", "file", "batch 1, ms", "batch 32, ms"),
    *("as found, %", "top-1 val, %", "top-1 test, %"),
)


def _cells(row: Row) -> list[str]:
    return [
        *(row["name"], words(row["found"]["suggested"] if row["found"] else {}) or MISSING, str(len(row["top1_val"]))),
        *(count(row["params"]), count(row["macs"]), size(row["file_bytes"])),
        *(milliseconds(row["latency_ms"][batch]) for batch in BATCHES),
        percent(row["found"]["top1"]) if row["found"] else MISSING,
        *(spread(row[f"top1_{split}"]) for split in SPLITS),
    ]


def _write(report: Record, study: optuna.Study, out: Path) -> None:
    from experiments.render import markdown, plots

    images = {"front.png": plots.retrained(report), "hypervolume.png": plots.volume(report)}
    if report["importances"]:
        images["importances.png"] = plots.importances(report["importances"])
        images["contour.png"] = plots.contour(study, list(report["importances"])[:2])
    for name, content in images.items():
        atomic_write(out / name, content)
    save_json(out / "front.json", report)
    table = markdown.table(HEAD, [_cells(row) for row in (report["teacher"], *report["rows"])], numbers=True)
    told = "\n".join(f"- {note}" for note in report["notes"])
    shown = "\n\n".join(f"![{name.removesuffix('.png')}]({name})" for name in images)
    atomic_write(
        out / "front.md", f"# The front, retrained\n\n{table}\n\n{told}\n\n{shown}\n\n    {report['command']}\n"
    )
