"""report.md: the report as a text that reads well as it is and on a code host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from experiments.render import words
from experiments.render.columns import ACCURACY, BATCH_1, BATCH_32, RATIOS, SIZE, TIME, Group
from experiments.render.plots import shown
from experiments.render.words import Report


def render(report: Report) -> str:
    """The whole of report.md; the plots are expected beside it."""
    return "\n\n".join(_blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[str]:
    yield f"# {escape(report['title'])}"
    yield escape(words.headline(report))
    yield "## Accuracy and size"
    yield rows(report, ACCURACY, SIZE)
    yield "## Latency and time"
    yield rows(report, BATCH_1, BATCH_32, TIME)
    yield f"## {RATIOS.title}"
    yield rows(report, RATIOS)
    yield escape(words.about_measures(report))
    notes = words.notes(report)
    if notes:
        yield "## Worth knowing"
        yield "\n".join(f"- {f'**{escape(name)}**: ' if name else ''}{escape(note)}" for name, note in notes)
    for plot in shown(report):
        yield f"## {plot.title}"
        yield f"![{plot.title}]({plot.file})"
        yield plot.caption
    yield "## How it was made"
    yield escape(words.about_data(report))
    yield code(report["command"])
    yield table(("", ""), words.about_environment(report))


def rows(report: Report, *groups: Group) -> str:
    """A line for each model, with the columns of the groups."""
    columns = [column for group in groups for column in group.columns]
    cells = [(row["name"], *(column.cell(row) for column in columns)) for row in report["rows"]]
    return table(("step", *(column.heading for column in columns)), cells, numbers=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """The first column to the left, numbers to the right."""
    rule = [":--", *(["--:" if numbers else ":--"] * (len(head) - 1))]
    lines = [map(escape, head), rule, *(map(escape, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """On one line, and nothing in it that Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*\[\]|<>#&])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """A command, whatever it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"
