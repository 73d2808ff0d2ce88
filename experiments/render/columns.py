"""The columns of the report's tables: once, for every rendering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.render.figures import Form, count, duration, milliseconds, percent, size, times

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One value of a row.

    Attributes:
        path: where it lies in the row.
        form: how it is written.
        title: what it is called under the heading of its group.
        alone: what it is called without one.
    """

    path: tuple[str, ...]
    form: Form
    title: str
    alone: str

    def cell(self, row: Row) -> str:
        return self.form(value(row, *self.path))


@dataclass(frozen=True)
class Group:
    """Columns under a common heading."""

    title: str
    columns: tuple[Column, ...]


def value(row: Row, *path: str) -> float | None:
    """What lies there; None where anything on the way is missing."""
    found: Any = row
    for key in path:
        found = (found or {}).get(key)
    return found


ACCURACY = Group(
    "Accuracy, %",
    (
        Column(("top1_val",), percent, "top-1 val", "top-1 val, %"),
        Column(("top1_test",), percent, "top-1 test", "top-1 test, %"),
        Column(("agreement",), percent, "agreement", "agreement, %"),
    ),
)
SIZE = Group(
    "Size and work",
    (
        Column(("params",), count, "params", "params"),
        Column(("nonzero",), count, "non-zero", "non-zero"),
        Column(("macs",), count, "MACs", "MACs"),
        Column(("file_bytes",), size, "file", "file"),
    ),
)
LATENCY = tuple(
    Group(
        f"Batch of {batch}, ms",
        tuple(
            Column(("latency_ms", f"batch{batch}", mark), milliseconds, mark, f"batch {batch} {mark}, ms")
            for mark in ("p50", "p95")
        ),
    )
    for batch in (1, 32)
)
RATIOS = Group(
    "Gains over the teacher",
    (
        Column(("ratios", "params"), times, "params", "fewer params"),
        Column(("ratios", "macs"), times, "MACs", "fewer MACs"),
        Column(("ratios", "file_bytes"), times, "file", "smaller file"),
        Column(("ratios", "latency_batch1"), times, "batch 1", "faster at batch 1"),
        Column(("ratios", "latency_batch32"), times, "batch 32", "faster at batch 32"),
    ),
)
TIME = Group("Took", (Column(("seconds",), duration, "wall time", "took"),))

# The two tables of a document: (title, groups).
TABLES = (
    ("Accuracy and size", (ACCURACY, SIZE)),
    ("Latency, gains and time", (*LATENCY, RATIOS, TIME)),
)
