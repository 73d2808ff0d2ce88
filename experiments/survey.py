"""The figures that surveys of compression quote, run again: docs/survey.md, each with its command and its conditions.

Example: python -m experiments.survey --out runs/survey --write docs/survey.md
The commands of the rows run one after the other; what is finished is not done again, so that the same command goes on
where it was stopped. Hours on two cores, most of them for the rows that train.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments import cli, compare_techniques
from experiments.claims import CLAIMS, Figure, Setting, techniques
from experiments.environment import describe
from experiments.render.markdown import code, table
from experiments.sweep import Row, show
from kd.checkpoint import load_json, save_json
from kd.console import say
from kd.errors import InputError


@dataclass(frozen=True)
class SurveyConfig:
    """Run what surveys claim.

    Attributes:
        out: where the figures of each row are kept.
        rows: which of them, by name; none: all.
        cifar10: the images of the rows that train: a name on the hub, or a folder of parquet files.
        resnet56: weights of the teacher of recipes/cifar10.yaml; None: it is trained, which takes hours.
        write: the page, with all that was found so far.
    """

    out: str = "runs/survey"
    rows: tuple[str, ...] = ()
    cifar10: str = "uoft-cs/cifar10"
    resnet56: str | None = None
    write: str | None = None

    def __post_init__(self) -> None:
        for row in self.rows:
            if row not in CLAIMS:
                raise InputError("rows", row, f"must be one of {', '.join(CLAIMS)}")

    def setting(self, name: str) -> Setting:
        return Setting(self.cifar10, self.resnet56, Path(self.out) / name)


def examine(name: str, setting: Setting) -> Row:
    """Run the commands of a row, each in a process of its own, and read what they left; kept once all have ended.

    Of a command that fails the row has the exit status in the place of figures, and the next survey tries again.
    """
    commands = CLAIMS[name].commands(setting)
    row: Row = {"commands": commands, "environment": describe(), "failed": None, "figures": []}
    setting.folder.mkdir(parents=True, exist_ok=True)
    for words in commands:
        say(f"{name}: {shlex.join(words)}")
        status = subprocess.run([sys.executable, "-W", "ignore", *words[1:]], stdout=subprocess.DEVNULL).returncode
        if status == 130 or status < 0:
            raise KeyboardInterrupt
        if status:
            return row | {"failed": f"{words[2]} ended with status {status}"}
    row["figures"] = [asdict(figure) for figure in CLAIMS[name].read(setting.folder)]
    save_json(setting.folder / "row.json", row)
    return row


def known(setting: Setting) -> Row | None:
    """The row, where it was finished before."""
    path = setting.folder / "row.json"
    return load_json(path) if path.exists() else None


def figures(row: Row) -> list[Figure]:
    return [Figure(**each) for each in row["figures"]]


def verdict(name: str, row: Row) -> str:
    """ "beaten", "reached", or "not reached, because", of the figures alone; "not measured" where there are none."""
    if row["failed"]:
        return f"not measured: {row['failed']}"
    found = figures(row)
    short = [figure for figure in found if not figure.reached]
    if short:
        missed = "; ".join(f"{figure} for {figure.published:{figure.form}}" for figure in short)
        return f"not reached ({missed}), because {CLAIMS[name].why}"
    return "beaten" if all(figure.beaten for figure in found if figure.published is not None) else "reached"


def page(config: SurveyConfig, rows: dict[str, Row]) -> str:
    """docs/survey.md, of the rows that there are."""
    return "\n\n".join(_blocks(config, rows)) + "\n"


HEAD = ("published", "ours", "verdict")


def _blocks(config: SurveyConfig, rows: dict[str, Row]) -> Iterator[str]:
    yield "# What surveys claim, run again"
    yield (
        "Figures that surveys of compression quote, measured here by the commands below, all of which\n"
        "`python -m experiments.survey` runs before it writes this page. A row is beaten or reached where each of its\n"
        "figures is."
    )
    lines = []
    for name, row in rows.items():
        ours = "; ".join(map(str, figures(row))) or "–"
        lines.append((CLAIMS[name].published, ours, verdict(name, row)))
    yield table(HEAD, lines)
    missing = [name for name in CLAIMS if name not in rows]
    if missing:
        yield f"Still to be run: {', '.join(missing)}."
    yield "## Commands and conditions"
    for name, row in rows.items():
        yield f"**{CLAIMS[name].published}** ({name}). {CLAIMS[name].conditions}"
        again = ["python", "-m", "experiments.survey", "--rows", f"[{name}]"]
        yield code("\n".join(map(shlex.join, row["commands"] or [again])))
    told = techniques(config.setting("jaderberg").folder)
    if told.exists():
        yield "## Each technique alone on one trained net"
        yield (
            "The net of the row `jaderberg`. Each technique is taken from mild to strong, each time from the whole\n"
            "net and recovered by distillation from it, until validation loses more than a point; the strongest\n"
            "setting that did not is shown. The test split was read once, for this table."
        )
        yield compare_techniques.markdown(load_json(told)).strip()
    yield "## Where"
    yield "\n".join(f"- {name}: {_where(row)}" for name, row in rows.items())


def _where(row: Row) -> str:
    made = row["environment"]
    versions = ", ".join(f"{package} {made['packages'][package]}" for package in ("torch", "timm", "onnxruntime"))
    return f"revision {str(made['git'])[:7]}, {made['processor']}, {made['cores']} cores, {versions}"


def main(config: SurveyConfig, _: str) -> None:
    rows: dict[str, Row] = {}
    written = cli.writable("write", config.write)
    for name in config.rows or CLAIMS:
        setting = config.setting(name)
        rows[name] = known(setting) or examine(name, setting)
        say(f"{name}: {verdict(name, rows[name])}")
    every = {name: rows.get(name) or known(config.setting(name)) for name in CLAIMS}
    show(page(config, {name: row for name, row in every.items() if row}), written)
    for name, row in rows.items():
        if row["failed"]:
            raise InputError("rows", name, verdict(name, row))


if __name__ == "__main__":
    sys.exit(cli.run("survey", SurveyConfig, main))
