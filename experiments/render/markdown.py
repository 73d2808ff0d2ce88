"""report.md: the report as a text that reads well in a terminal and on a code host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from experiments.render import words
from experiments.render.columns import ACCURACY, BATCH_1, BATCH_32, RATIOS, SIZE, TIME
from experiments.render.plots import shown
from experiments.render.words import Report

TABLES = (("Accuracy and size", (ACCURACY, SIZE)), ("Latency and gains", (BATCH_1, BATCH_32, RATIOS, TIME)))


def render(report: Report) -> str:
    """The whole of report.md; the plots are expected beside it."""
    return "\n\n".join(_blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[str]:
    rows = report["rows"]
    yield f"# {_escape(report['title'])}"
    yield _escape(words.headline(report))
    for title, groups in TABLES:
        columns = [column for group in groups for column in group.columns]
        yield f"## {title}"
        cells = ([_escape(row["name"]), *(column.cell(row) for column in columns)] for row in rows)
        yield _table(["step", *(_escape(column.title) for column in columns)], cells)
    yield _escape(words.about_measures(report))
    notes = words.notes(report)
    if notes:
        yield "## Worth knowing"
        yield "\n".join(f"- {f'**{_escape(name)}**: ' if name else ''}{_escape(note)}" for name, note in notes)
    for plot in shown(report):
        yield f"![{plot.title}. {plot.caption}]({plot.file})"
    yield "## How it was made"
    yield _escape(words.about_data(report))
    yield _code(report["command"])
    facts = ([_escape(label), _escape(value)] for label, value in words.about_environment(report))
    yield _table(["what", "which"], facts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Names on the left, numbers on the right."""
    rule = [":--", *["--:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _escape(text: str) -> str:
    """What Markdown would read as its own; a line break would end a row."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"
