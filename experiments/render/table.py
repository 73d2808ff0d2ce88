"""The report's table in a terminal."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from experiments.render import words
from experiments.render.columns import ACCURACY, LATENCY, SIZE, TIME, Column
from experiments.render.words import Report

_PARAMS, _NONZERO, _MACS, _FILE = SIZE.columns
COLUMNS: tuple[tuple[str, Column], ...] = (
    *zip(("val\n%", "test\n%", "agree\n%"), ACCURACY.columns, strict=True),
    ("params\n", _PARAMS),
    ("MACs\n", _MACS),
    ("file\n", _FILE),
    *zip(("batch\n1, ms", "batch\n32, ms"), (group.columns[0] for group in LATENCY), strict=True),
    ("took\n", TIME.columns[0]),
)


def render(report: Report) -> Table:
    """A row for each artefact, the deployed one in bold; 80 columns are enough, names wrap where there are fewer."""
    caption = escape(words.headline(report))
    table = Table(title=escape(report["title"]), caption=caption, box=box.SIMPLE_HEAD, padding=0)
    table.add_column("", overflow="fold", min_width=8)
    for title, _ in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for row in report["rows"]:
        deployed = row is report["rows"][-1]
        cells = (column.cell(row) for _, column in COLUMNS)
        table.add_row(escape(row["name"]), *cells, style="bold" if deployed else "")
    return table
