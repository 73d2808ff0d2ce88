"""Train methods side by side: one student, one budget, the same seeds; only what it learns from differs.

Example: python -m experiments.compare_methods --out runs/methods --methods KD,FitNet,RKD,DML --seeds 0,1
The student from scratch and the teacher stand beside them. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import students
import teachers
from experiments import cli, train_teacher
from experiments.config import StudentConfig, TeacherConfig, blueprint
from experiments.render.figures import spread
from experiments.steps import Outcome, Run, in_main_process
from kd.batch import Needs
from kd.checkpoint import atomic_write, load_json, save_json
from kd.console import say
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.errors import DivergedError, InputError
from kd.evaluate import answers, score
from kd.fit import Fit
from kd.loss import Term
from kd.methods import METHODS, Method, Setting, own
from kd.phases import train

BASELINE, YARDSTICK = "scratch", "KD"


@dataclass(frozen=True)
class CompareConfig:
    """Compare methods.

    Attributes:
        out: the run folder.
        methods: names, with commas between them; see docs/methods.md.
        own: further ones by names of your own, each of losses by import path with their weights.
        seeds: of weights, order and dropout, with commas between them.
        data: what all learn from.
        teacher: the large model.
        student: the small one; ONE trains three of it.
        others: further nets: the peers of DML and KDCL (none: a second student), the assistants of TAKD in order.
        fit: how each is trained.
    """

    out: str = "runs/methods"
    methods: str = "KD,FitNet,RKD"
    own: dict[str, dict[str, Term]] = field(default_factory=dict)
    seeds: str = "0,1"
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    others: tuple[StudentConfig, ...] = ()
    fit: Fit = Fit()


def methods(config: CompareConfig) -> dict[str, Method]:
    """The methods that are asked for. Raises InputError for an unknown one, and for one of a name that another has."""
    found: dict[str, Method] = {}
    for name in filter(None, map(str.strip, config.methods.split(","))):
        if name not in METHODS:
            raise InputError("methods", name, f"unknown; known: {', '.join(METHODS)}")
        found[name] = METHODS[name]
    for name, terms in config.own.items():
        if name in ("teacher", *METHODS) or not re.fullmatch(r"\w[\w .,+-]*", name):
            raise InputError("own", name, "must be a name that no other has, and that a folder can have")
        found[name] = own(terms)
    return found


def seeds(config: CompareConfig) -> list[int]:
    """Raises InputError for what is no whole number."""
    try:
        return [int(part) for part in config.seeds.split(",")]
    except ValueError as error:
        raise InputError("seeds", config.seeds, "must be whole numbers with commas between them") from error


def learn(name: str, method: Method, setting: Setting, data: Data, fit: Fit, folder: Path, seed: int) -> Outcome:
    """The step: a student is trained by one method; leaves a model folder, unless it diverged."""
    try:
        trained = train(method.phases(setting, fit.epochs), data, replace(fit, seed=seed), folder, label=name)
    except DivergedError as error:  # a result too, and no reason to lose the others
        say(str(error))
        return Outcome("diverged", notes=(str(error),))
    regime, history = trained[-1]
    shipped = regime.deploy(history.best_name)
    in_main_process(lambda: students.save(shipped, folder))
    seconds = sum(history.seconds for _, history in trained)
    return Outcome("student", seconds=seconds, curve=history.epochs, details={"ranking": history.ranking})


def check(methods: Iterable[Method], setting: Setting, data: Data, fit: Fit) -> None:
    """Raise InputError for a method that cannot work with these nets, before any of them trains."""
    for method in methods:
        first = next(method.phases(setting, fit.epochs))
        first.regime.bind(data.facts)


def compare(folders: dict[str, list[Path]], teacher: teachers.AnyTeacher, data: Data, out: Path) -> Outcome:
    """The step: scores every student on validation and test, and writes methods.json, methods.md and methods.png."""
    known = {split: answers(teacher.predict, data.evaluation(split)) for split in ("val", "test")}
    rows = [_row("teacher", [known], [0.0], known)]
    for name, places in folders.items():
        models = [students.load(place).eval() for place in places if (place / "blueprint.json").exists()]
        said = [{split: answers(model, data.evaluation(split)) for split in ("val", "test")} for model in models]
        seconds = [load_json(place / "step.json")["seconds"] for place in places]
        rows.append(_row(name, said, seconds, known) | {"diverged": len(places) - len(models)})
    yardstick = next((row["seconds"] for row in rows if row["name"] == YARDSTICK), None)
    for row in rows:
        row["seconds_ratio"] = row["seconds"] / yardstick if yardstick else None
    in_main_process(lambda: _write(rows, out))
    return Outcome("comparison")


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    from experiments.render import plots

    save_json(out / "methods.json", {"rows": rows, "command": cli.command("compare_methods")})
    atomic_write(out / "methods.md", _markdown(rows))
    atomic_write(out / "methods.png", plots.methods(rows))


def _row(name: str, said: list[dict[str, Any]], seconds: list[float], teacher: dict[str, Any]) -> dict[str, Any]:
    val = [score(*each["val"]).top1 for each in said]
    test = [score(*each["test"], teacher["test"][0]) for each in said]
    return {
        "name": name,
        "seeds": len(said),
        "top1_val": val,
        "top1_test": [metrics.top1 for metrics in test],
        "agreement": [metrics.agreement for metrics in test],
        "seconds": statistics.mean(seconds),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    cost = "–" if not row["seconds_ratio"] else f"{row['seconds_ratio']:.2f}×"
    values = [spread(row[column]) for column in ("top1_val", "top1_test", "agreement")]
    name = f"{row['name']} ({row['diverged']} diverged)" if row.get("diverged") else row["name"]
    return [name, *values, f"{row['seconds']:.0f}", cost]


HEAD = ("method", "top-1 val, %", "top-1 test, %", "agreement, %", "seconds", f"of {YARDSTICK}")


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [HEAD, (":--", *["--:"] * (len(HEAD) - 1)), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _show(out: Path) -> None:
    table = Table(*HEAD)
    for row in load_json(out / "methods.json")["rows"]:
        table.add_row(*_cells(row))
    Console().print(table)


def main(config: CompareConfig, resolved: str) -> None:
    data, draws = load_data(config.data), seeds(config)
    chosen = {BASELINE: METHODS[BASELINE], **methods(config)}
    train_teacher.check(config.teacher, data)
    nets = [blueprint(net.name, net.width, net.depth, data) for net in (config.student, *config.others)]
    for net in nets:
        net.build("meta")
    run = Run(Path(config.out), resolved, cli.command("compare_methods"))
    teacher = train_teacher.guide(config.teacher, data, run, 0, Needs(embedding=True))
    setting = Setting(nets[0].build, teacher, teachers.Teacher, tuple(net.build for net in nets[1:]))
    folders: dict[str, list[Path]] = {name: [] for name in chosen}
    check(chosen.values(), setting, data, config.fit)
    for seed in draws:
        for name, method in chosen.items():

            def work(folder: Path, name: str = name, method: Method = method, seed: int = seed) -> Outcome:
                return learn(name, method, setting, data, config.fit, folder, seed)

            folders[name].append(run.step(f"{name}/seed-{seed}", work))
    live = teacher.teacher if isinstance(teacher, teachers.Cached) else teacher
    run.step("comparison", lambda folder: compare(folders, live, data, run.out))
    in_main_process(lambda: _show(run.out))


if __name__ == "__main__":
    sys.exit(cli.run("compare_methods", CompareConfig, main))
