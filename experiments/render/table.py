"""The final table in the terminal: whole at 100 columns; at 80 each ratio goes below its value."""

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
    Column,
    Row,
)
from experiments.render.figures import times
from experiments.render.words import Report

# a heading, the value, and the name of its ratio to the teacher
COLUMNS: tuple[tuple[str, Column, str | None], ...] = (
    ("val %", TOP1_VAL, None),
    ("test %", TOP1_TEST, None),
    ("agree %", AGREEMENT, None),
    ("params", PARAMS, None),
    ("MACs", MACS, "macs"),
    ("file", FILE, "file_bytes"),
    ("batch 1 ms", BATCH_1_P50, "latency_batch1"),
    ("batch 32 ms", BATCH_32_P50, "latency_batch32"),
    ("took", WALL_TIME, None),
)


def render(report: Report) -> Table:
    """A row an artefact; below it the headline and what became worse. × are ratios to the teacher."""
    table = Table(
        title=Text(report["title"]), caption=_caption(report), box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("", overflow="fold", max_width=16)
    for heading, _, ratio in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=not ratio)
    last = len(report["rows"]) - 1
    for number, row in enumerate(report["rows"]):
        style = "bold" if number == last else ""
        table.add_row(Text(row["name"]), *(_cell(row, column, ratio) for _, column, ratio in COLUMNS), style=style)
    return table


def _cell(row: Row, column: Column, ratio: str | None) -> Text:
    cell = column.cell(row).replace(" ", "")
    known = ratio and row["ratios"][ratio]
    return Text(f"{cell} {times(known)}" if known else cell)


def _caption(report: Report) -> Text:
    notes = [f"{name}: {note}" if name else note for name, note in words.notes(report)]
    return Text("\n".join([words.headline(report), *notes]), justify="left")
