"""Each way to compress, alone, on one trained net: how far it goes at what accuracy, how small and how fast that is.

Example: python -m experiments.compare_techniques --out runs/techniques --teacher.source runs/distill/student
Each technique is taken from mild to strong, each time from the whole net and recovered by distillation from it, until
validation loses more than `within` points; the strongest that did not is scored on the test split, read once, at the
end. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

import students
from compress import (
    Artefact,
    Cluster,
    CodedModel,
    Context,
    Encode,
    Export,
    FileModel,
    LowRank,
    Prune,
    Quantize,
    Recover,
    Report,
    Sparsify,
    Stage,
    latency,
    load_artefact,
    measure,
)
from compress.lowrank.lowrank import Method
from experiments import cli, train_teacher
from experiments.compress import compress
from experiments.config import ObjectiveConfig, TeacherConfig
from experiments.render.figures import MISSING
from experiments.render.markdown import table
from experiments.steps import Outcome, Run, in_main_process
from kd.checkpoint import atomic_write, save_json
from kd.console import say
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.errors import InputError
from kd.evaluate import Predict, evaluate
from kd.fit import Fit
from kd.loss import Loss
from kd.losses import KD
from students.storage import WEIGHTS

WHOLE = "whole"
FACTORS: dict[str, Method] = {"Tucker factors": "tucker", "CP factors": "cp", "spatial factors": "spatial"}
MODES: tuple[Literal["static", "dynamic"], ...] = ("static", "dynamic")
NAMES = (
    "narrower student",
    "channels pruned",
    *FACTORS,
    "weights pruned",
    "weights shared",
    "Deep Compression",
    *(f"8-bit integers, {mode}" for mode in MODES),
)
BATCHES = (1, 32)
RUNTIMES = ("torch", "onnxruntime")
Row = dict[str, Any]


@dataclass(frozen=True)
class CompareConfig:
    """Compare techniques.

    Attributes:
        out: the run folder.
        techniques: which of them.
        ways: further ones by names of your own, each of stages by import path, in one setting.
        within: points of top-1 on validation that each may cost.
        kept: the shares of multiply-accumulates that pruning and factorising leave, from mild to strong.
        zeros: the shares of weights that are set to zero, from mild to strong.
        bits: of the indices of shared weights, from mild to strong.
        widths: of the narrower student, from mild to strong.
        epochs: of each recovery.
        student_epochs: of the narrower student, which begins with weights that are drawn.
        lr: of recovery; None: that of the fit.
        data: for calibration, recovery, validation and test.
        teacher: the net that is compressed, and whom recovery learns from.
        seed: of whatever is drawn.
        loss: the distillation loss of recovery, by import path.
        objective: how it is weighed against the labels.
        fit: how recovery trains.
        latency_seconds: about how long is measured.
        threads: of each runtime.
    """

    out: str = "runs/techniques"
    techniques: tuple[str, ...] = NAMES
    ways: dict[str, list[Stage]] = field(default_factory=dict)
    within: float = 1.0
    kept: tuple[float, ...] = (0.7, 0.5, 0.35, 0.25)
    zeros: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    bits: tuple[int, ...] = (6, 4, 3, 2)
    widths: tuple[float, ...] = (0.75, 0.5, 0.25)
    epochs: int = 2
    student_epochs: int = 10
    lr: float | None = None
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    seed: int = 0
    loss: Loss = field(default_factory=KD)
    objective: ObjectiveConfig = ObjectiveConfig()
    fit: Fit = Fit()
    latency_seconds: float = 60.0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("kept", "zeros", "bits", "widths"):
            if not getattr(self, name):
                raise InputError(name, "[]", "name at least one")
        for name in self.techniques:
            if name not in NAMES:
                raise InputError("techniques", name, f"must be one of {'; '.join(NAMES)}")
        if not self.techniques and not self.ways:
            raise InputError("techniques", "[]", "name at least one, or ways of your own")
        for name, stages in self.ways.items():
            if not stages or name in (WHOLE, *NAMES):
                raise InputError("ways", name, "needs stages, and a name that no other has")
        if not self.within >= 0:
            raise InputError("within", self.within, "must be 0 or above")
        if isinstance(self.teacher.source, tuple):
            raise InputError("teacher.source", list(self.teacher.source), "must be one net: it is compressed")
        ladders(self)  # whose stages refuse what they cannot do


@dataclass(frozen=True)
class Narrow:
    """The net at a share of its width, with weights that are drawn: what a search over width begins with."""

    width: float

    def __post_init__(self) -> None:
        if not 0 < self.width < 1:
            raise InputError("widths", self.width, "must be above 0 and below 1")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        assert isinstance(model, students.Classifier)
        width = model.blueprint.width
        if not isinstance(width, float):
            raise InputError("teacher.width", width, "must be one number for a narrower student")
        plan = replace(model.blueprint, width=width * self.width, edits=())
        return plan.build().eval(), Report("narrow")


class Rung(NamedTuple):
    """One setting of a technique."""

    setting: str
    stages: tuple[Stage, ...]


def ladders(config: CompareConfig) -> dict[str, list[Rung]]:
    """The settings of each technique, from mild to strong."""
    recover, learn = Recover(config.epochs, config.lr), Recover(config.student_epochs)
    found: dict[str, list[Rung]] = {name: [] for name in NAMES}
    for width in config.widths:
        found["narrower student"].append(Rung(f"width × {width:g}", (Narrow(width), learn)))
    for share in config.kept:
        found["channels pruned"].append(Rung(f"{share:.0%} of MACs", (Prune(share), recover)))
        for name, method in FACTORS.items():
            found[name].append(Rung(f"{share:.0%} of MACs", (LowRank(share, method=method), recover)))
    for bits in config.bits:
        found["weights shared"].append(Rung(f"{bits} bits", (Cluster(bits, bits), recover, Encode())))
    for share in config.zeros:
        sparse = (Sparsify(share), recover)
        found["weights pruned"].append(Rung(f"{share:.0%} zeros", sparse))
        coded = (*sparse, Cluster(4, 4), recover, Encode())
        found["Deep Compression"].append(Rung(f"{share:.0%} zeros, 4 bits", coded))
    for mode in MODES:
        found[f"8-bit integers, {mode}"] = [Rung("8 bits", (Export(), Quantize(mode=mode)))]
    chosen = {name: found[name] for name in config.techniques}
    return chosen | {name: [Rung("as given", tuple(stages))] for name, stages in config.ways.items()}


def climb(technique: str, rungs: Sequence[Rung], start: Path, run: Run, context: Context, limit: float) -> list[Row]:
    """What each setting left on validation, until one has less than `limit`."""
    rows = []
    for number, (setting, stages) in enumerate(rungs, 1):
        place = compress(stages, start, run, context, under=f"{_slug(technique)}/{number}/")
        top1 = evaluate(load_artefact(place), context.data.evaluation("val")).top1
        say(f"{technique}, {setting}: {top1:.2f}% on validation, where {limit:.2f}% is asked for")
        rows.append(
            {"technique": technique, "setting": setting, "val": top1, "folder": str(place.relative_to(run.out))}
        )
        if top1 < limit:
            break
    return rows


def compare(climbed: dict[str, list[Row]], limit: float, config: CompareConfig, data: Data, out: Path) -> Outcome:
    """The step: scores, weighs and times the strongest of each technique, and writes table.json and table.md."""
    val = evaluate(load_artefact(out / "teacher"), data.evaluation("val")).top1
    whole = {"technique": WHOLE, "setting": MISSING, "val": val, "folder": "teacher"}
    strongest = (max(rows, key=lambda row: (row["val"] >= limit, rows.index(row))) for rows in climbed.values())
    rows = [dict(row) for row in (whole, *strongest)]
    forms: dict[str, Predict] = {}
    for row in rows:
        artefact = load_artefact(out / row["folder"])
        row["test"] = evaluate(artefact, data.evaluation("test")).top1
        row["held"] = row["val"] >= limit
        cost = measure(artefact, data.facts.image_shape)
        row |= {"params": cost.params, "nonzero": cost.nonzero, "macs": cost.macs}
        path = artefact.path if isinstance(artefact, FileModel) else out / row["folder"] / WEIGHTS
        row["bytes"] = path.stat().st_size
        found = _forms(artefact, data, out / "comparison" / f"{_slug(row['technique'])}.onnx")
        forms |= {f"{runtime} {row['technique']}": form for runtime, form in found.items()}
    say("comparison: latencies, all forms taking turns")
    times = latency(forms, data.facts.image_shape, BATCHES, 10, config.threads, config.latency_seconds)
    for row in rows:
        row["ms"] = {
            runtime: {f"batch{batch}": times[key][f"batch{batch}"]["p50"] for batch in BATCHES}
            for runtime in RUNTIMES
            if (key := f"{runtime} {row['technique']}") in times
        }
    told = {
        "command": cli.command("compare_techniques"),
        "limit": limit,
        "rows": rows,
        "climbed": [row for each in climbed.values() for row in each],
    }

    def write() -> None:
        save_json(out / "table.json", told)
        atomic_write(out / "table.md", markdown(told))

    in_main_process(write)
    return Outcome("comparison")


def _slug(technique: str) -> str:
    return technique.replace(",", "").replace(" ", "-").lower()


def _forms(artefact: Artefact, data: Data, path: Path) -> dict[str, Predict]:
    """What runs on each runtime: a module and the file it would become, of a file itself."""
    model = artefact.classifier if isinstance(artefact, CodedModel) else artefact
    if isinstance(model, nn.Module):
        return {"torch": model, "onnxruntime": Export().write(model, data, path)}
    return {"onnxruntime": model}


TIMES = [(runtime, batch) for runtime in RUNTIMES for batch in BATCHES]
HEAD = (
    *("technique", "setting", "val, %", "test, %", "fewer params", "nonzero", "fewer MACs", "smaller file"),
    *(f"faster, {runtime}, batch {batch}" for runtime, batch in TIMES),
)


def markdown(told: dict[str, Any]) -> str:
    """Both tables: what each technique came to, and what each setting left on validation."""
    rows, whole = told["rows"], told["rows"][0]
    lines = []
    for row in rows:
        held = "" if row["held"] else " (too much)"
        cells = [f"{row['technique']}{held}", row["setting"], f"{row['val']:.2f}", f"{row['test']:.2f}"]
        cells += [f"{whole[cost] / row[cost]:.2f}×" for cost in ("params", "nonzero", "macs", "bytes")]
        for runtime, batch in TIMES:
            found = row["ms"].get(runtime)
            cells.append(f"{whole['ms'][runtime][f'batch{batch}'] / found[f'batch{batch}']:.2f}×" if found else MISSING)
        lines.append(cells)
    climbed = [[row["technique"], row["setting"], f"{row['val']:.2f}"] for row in told["climbed"]]
    below = f"What each setting left; {told['limit']:.2f} % was asked for:"
    return f"{table(HEAD, lines, True)}\n\n{below}\n\n{table(('technique', 'setting', 'val, %'), climbed, True)}\n"


def main(config: CompareConfig, resolved: str) -> None:
    data = load_data(config.data)
    train_teacher.check(config.teacher, data)
    run = Run(Path(config.out), resolved, cli.command("compare_techniques"))
    objective = config.objective.build(config.loss)
    teacher = train_teacher.guide(config.teacher, data, run, config.seed, objective().asks)
    start = run.out / "teacher"
    limit = evaluate(students.load(start), data.evaluation("val")).top1 - config.within
    context = Context(data, teacher, start, config.fit, objective, config.seed)
    climbed = {name: climb(name, rungs, start, run, context, limit) for name, rungs in ladders(config).items()}
    run.step("comparison", lambda _: compare(climbed, limit, config, data, run.out))
    in_main_process(lambda: print((run.out / "table.md").read_text(), end=""))


if __name__ == "__main__":
    sys.exit(cli.run("compare_techniques", CompareConfig, main))
