"""Measure every artefact of a run again, together, on the runtime that is deployed, and write the report.

Example: python -m experiments.report --out runs/digits
No other step reads the test split.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from compress import Artefact, Export, FileModel, latency
from compress import measure as measure_cost
from compress.artefact import is_artefact
from compress.card import write_card
from experiments import cli
from experiments.evaluate import opened
from experiments.publish import of_report
from experiments.steps import Outcome, chain, settings
from kd.checkpoint import atomic_write, load_json, save_json
from kd.console import say
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.errors import InputError
from kd.evaluate import answers, score


@dataclass(frozen=True)
class ReportConfig:
    """How artefacts are measured.

    Attributes:
        latency_seconds: how long latencies are measured in all, the artefacts taking turns.
        threads: of the runtime.
    """

    latency_seconds: float = 20.0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("latency_seconds", "threads"):
            if getattr(self, name) <= 0:
                raise InputError(f"report.{name}", getattr(self, name), "must be above 0")


@dataclass(frozen=True)
class ReportCommandConfig:
    """Report on a run.

    Attributes:
        out: the run folder.
        report: how its artefacts are measured.
    """

    out: str
    report: ReportConfig = ReportConfig()


def measure(out: Path, data: Data, config: ReportConfig) -> Outcome:
    """The step: measures all artefacts and writes report.json, report.md, report.html and the plots into `out`.

    The last artefact gets its model card.
    """
    from experiments.render import words

    steps = [step for step in chain(out) if is_artefact(out / step["name"])]
    if not steps:
        raise InputError("out", str(out), "holds no finished model yet")
    artefacts = {step["name"]: opened(out / step["name"], data) for step in steps}
    models = {name: _deployed(artefact, name, out, data) for name, artefact in artefacts.items()}
    say("report: latencies, the artefacts taking turns")
    times = latency(models, data.facts.image_shape, seconds=config.latency_seconds, threads=config.threads)
    said = {
        name: {split: answers(model, data.evaluation(split)) for split in ("val", "test")}
        for name, model in models.items()
    }
    rows = [_row(step, artefacts[step["name"]], models, said, times, data) for step in steps]
    _ratios(rows)
    for row, notes in zip(rows, words.problems(rows), strict=True):
        row["notes"] = [*row["notes"], *notes]
    environment = load_json(out / "environment.json")
    config_of_run = settings(out)
    search = next((step for step in chain(out) if step["kind"] == "search"), None)
    found = search["details"] if search else {"front": [], "trials": []}
    report = {
        "title": f"{Path(data.config.source).name}: {rows[0]['name']} to {rows[-1]['name']}",
        "command": environment.pop("command"),
        "seed": config_of_run.get("seed"),
        "data": _describe(data),
        "rows": rows,
        "front": found["front"],
        "trials": found["trials"],
        "curves": {step["name"]: step["curve"] for step in steps if step.get("curve")},
        "notes": [f"The search: {note}" for note in search["notes"]] if search else [],
        "environment": environment,
        "config": config_of_run,
    }
    write(report, out)
    write_card(out / steps[-1]["name"], of_report(report, steps[-1]["name"]))
    return Outcome("report")


def write(report: dict[str, Any], out: Path) -> None:
    """report.json and its renderings."""
    from experiments.render import html, markdown, plots

    images = {"front.png": plots.front(report), "curves.png": plots.curves(report)}
    for name, content in images.items():
        atomic_write(out / name, content)
    save_json(out / "report.json", report)
    atomic_write(out / "report.md", markdown.render(report))
    atomic_write(out / "report.html", html.render(report, images))


def show(out: Path) -> None:
    """The final table, in the terminal."""
    from experiments.render import table

    Console().print(table.render(load_json(out / "report.json")))
    say(f"the report: {out / 'report.html'}")


def _deployed(artefact: Artefact, name: str, out: Path, data: Data) -> FileModel:
    """The artefact as a file that its runtime runs."""
    if isinstance(artefact, FileModel):
        return artefact
    say(f"report: exports {name}")
    return Export().write(artefact, data, out / "report" / f"{name.replace('/', '-')}.onnx")


def _row(step: dict[str, Any], artefact: Artefact, models: Any, said: Any, times: Any, data: Data) -> dict[str, Any]:
    name = step["name"]
    cost = measure_cost(artefact, data.facts.image_shape)
    teacher = said["teacher"]["test"][0] if "teacher" in said else None
    val, test = score(*said[name]["val"]), score(*said[name]["test"], teacher)
    return {
        "name": name.removeprefix("stages/"),
        "kind": step["kind"],
        "top1_val": val.top1,
        "top1_test": test.top1,
        "agreement": test.agreement,
        "ece_test": test.ece,
        **asdict(cost),
        "file_bytes": models[name].path.stat().st_size,
        "latency_ms": times[name],
        "seconds": step["seconds"],
        "notes": list(step["notes"]),
    }


def _ratios(rows: list[dict[str, Any]]) -> None:
    """Teacher over this: 4.0 means four times smaller or faster."""
    base = rows[0]
    for row in rows:
        row["ratios"] = {name: base[name] / row[name] for name in ("params", "macs", "file_bytes")}
        for batch in ("batch1", "batch32"):
            row["ratios"][f"latency_{batch}"] = base["latency_ms"][batch]["p50"] / row["latency_ms"][batch]["p50"]


def _describe(data: Data) -> dict[str, Any]:
    facts = data.facts
    return {
        "source": data.config.source,
        "train": len(data.train),
        "val": len(data.val),
        "test": len(data.test),
        "classes": facts.classes,
        "channels": facts.channels,
        "image_size": list(facts.image_size),
        "notes": list(data.notes),
    }


def main(config: ReportCommandConfig, resolved: str) -> None:
    out = Path(config.out)
    if not (out / "config.yaml").exists():
        raise InputError("out", config.out, "is no run folder")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataConfig, "data")
    section = settings(out)["data"]
    data = load_data(parser.instantiate(parser.parse_object({"data": section})).data)
    measure(out, data, config.report)
    show(out)


if __name__ == "__main__":
    sys.exit(cli.run("report", ReportCommandConfig, main))
