"""report.md: the report as a text that reads well in a terminal and on a code host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from experiments.render import words
from experiments.render.columns import TABLES
from experiments.render.plots import PLOTS
from experiments.render.words import Report


def render(report: Report) -> str:
    """The whole of report.md; the plots are expected beside it."""
    return "\n\n".join(_blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[str]:
    yield f"# {_escape(report['title'])}"
    yield _escape(words.headline(report))
    for title, groups in TABLES:
        columns = [column for group in groups for column in group.columns]
        yield f"## {title}"
        yield _table(
            ["artefact", *(column.alone for column in columns)],
            ([_escape(row["name"]), *(column.cell(row) for column in columns)] for row in report["rows"]),
        )
    yield words.LEGEND
    yield "## Notes"
    notes = [f"- **{_escape(row['name'])}**: {_escape(note)}" for row in report["rows"] for note in row["notes"]]
    notes += [f"- {_escape(note)}" for note in report["notes"]]
    yield "\n".join(notes) or "None."
    for plot in PLOTS:
        yield f"## {plot.title}"
        yield f"![{plot.caption}]({plot.file})"
    yield "## Data"
    yield " ".join(map(_escape, (words.data(report), *report["data"]["notes"])))
    yield "## Environment"
    yield "\n".join(f"- {_escape(name)}: {_escape(fact)}" for name, fact in words.environment(report))
    yield "## Command"
    yield f"Seed: {words.plain(report['seed'])}."
    yield _code(report["command"])


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
