"""The final table in the terminal: one line a row in 80 columns; ratios are for the other renderings."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from experiments.render import words
from experiments.render.columns import (
    AGREEMENT,
    BATCH_1_P50,
    BATCH_32_P50,
    FILE,
    MACS,
    PARAMS,
    TOP1_TEST,
    TOP1_VAL,
    WALL_TIME,
)
from experiments.render.words import Report

COLUMNS = {
    "val\n%": TOP1_VAL,
    "test\n%": TOP1_TEST,
    "agree\n%": AGREEMENT,
    "params": PARAMS,
    "MACs": MACS,
    "file": FILE,
    "batch\n1, ms": BATCH_1_P50,
    "batch\n32, ms": BATCH_32_P50,
    "took": WALL_TIME,
}


def render(report: Report) -> Table:
    """A row an artefact, the deployed one in bold; below it the headline and what else is worth knowing."""
    table = Table(
        title=Text(report["title"]), caption=_caption(report), box=box.SIMPLE_HEAD, show_edge=False, padding=0
    )
    table.add_column("", overflow="fold")
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        cells = (column.cell(row).replace(" ", "") for column in COLUMNS.values())
        table.add_row(Text(row["name"]), *cells, style="bold" if row is report["rows"][-1] else "")
    return table


def _caption(report: Report) -> Text:
    notes = [f"{name}: {note}" if name else note for name, note in words.notes(report)]
    return Text("\n".join([words.headline(report), *notes]), justify="left")
