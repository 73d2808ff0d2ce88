"""Publish an artefact with its model card on the Hugging Face hub, or only write the card.

Example: python -m experiments.publish --model runs/digits/stages/06-quantize --to user/name
Example: python -m experiments.publish --model runs/digits/stages/06-quantize --out card
What the card tells of accuracy, cost and latency is what the report of the run says. The token is that of `hf auth
login`, or HF_TOKEN.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compress import load_artefact, save_artefact
from compress.card import Told, write_card
from compress.hub import push_to_hub
from experiments import cli
from experiments.render import markdown, words
from experiments.render.columns import ACCURACY, BATCH_1, BATCH_32, SIZE
from kd.checkpoint import load_json
from kd.console import say
from kd.errors import InputError

REPORT = "report.json"


@dataclass(frozen=True)
class PublishConfig:
    """Publish one artefact.

    Attributes:
        model: its folder, or the file in it.
        to: where on the hub, as user/name.
        out: a folder that the card is written into.
        license: of the model, by its name on the hub: data and teacher have a say in it.
        private: whether a new place on the hub is for its owner alone.
    """

    model: str
    to: str | None = None
    out: str | None = None
    license: str = "unknown"
    private: bool = False

    def __post_init__(self) -> None:
        if not self.to and not self.out:
            raise InputError("to", "null", "name a place on the hub (--to user/name), or a folder for the card (--out)")


def told(folder: Path, title: str | None = None, license: str = "unknown") -> Told:
    """What the report of the run that `folder` is part of says of its artefact; nothing where there is none."""
    run = next((parent for parent in folder.resolve().parents if (parent / REPORT).is_file()), None)
    if run is None:
        return Told(title or folder.resolve().name, license)
    return of_report(load_json(run / REPORT), folder.resolve().relative_to(run).as_posix(), title, license)


def of_report(report: dict[str, Any], step: str, title: str | None = None, license: str = "unknown") -> Told:
    """The report as the card of the artefact of `step` tells it: what led to it, and nothing that came after."""
    names = [row["name"] for row in report["rows"]]
    name = step.removeprefix("stages/")
    if name not in names:
        return Told(title or name, license)
    report = report | {"rows": report["rows"][: names.index(name) + 1]}
    row = report["rows"][-1]
    source = report["data"]["source"]
    return Told(
        title or f"{Path(source).name}, {name}",
        license,
        source if "/" not in source.strip("/") or not Path(source).exists() else Path(source).name,
        {"validation": row["top1_val"], "test": row["top1_test"]},
        {"Figures": _figures(report), "How it was made": _made(report)},
    )


def _figures(report: dict[str, Any]) -> str:
    where = report["environment"]
    threads = {row["latency_ms"]["threads"] for row in report["rows"] if row["latency_ms"]}
    conditions = (
        f"Latencies are of {where.get('processor') or 'an unknown processor'}, threads: "
        f"{', '.join(map(str, sorted(threads)))}. The model of this card is the last line."
    )
    tables = (markdown.rows(report, ACCURACY, SIZE), markdown.rows(report, BATCH_1, BATCH_32))
    return "\n\n".join((*tables, markdown.escape(f"{words.about_measures(report)} {conditions}")))


def _made(report: dict[str, Any]) -> str:
    steps = " → ".join(row["name"] for row in report["rows"] if row["kind"] != "scratch")
    notes = [f"- **{markdown.escape(name)}**: {markdown.escape(note)}" for name, note in words.notes(report) if name]
    blocks = [markdown.escape(words.about_data(report)), markdown.escape(f"Step by step: {steps}."), "\n".join(notes)]
    return "\n\n".join(block for block in (*blocks, markdown.code(report["command"])) if block)


def main(config: PublishConfig, _: str) -> None:
    folder = Path(config.model)
    folder = folder.parent if folder.is_file() else folder
    facts = told(folder, config.to and config.to.rpartition("/")[2], config.license)
    if not facts.top1:
        say(f"{folder} is no step of a run with a report: the card has no figures")
    if config.out:
        say(f"the card: {write_card(folder, facts, Path(config.out))}")
    if config.to:
        with TemporaryDirectory() as temporary:
            save_artefact(load_artefact(folder), Path(temporary))
            write_card(Path(temporary), facts)
            print(push_to_hub(Path(temporary), config.to, config.private))


if __name__ == "__main__":
    sys.exit(cli.run("publish", PublishConfig, main))
