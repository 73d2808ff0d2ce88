"""The columns of the report's tables: once, for every rendering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.render.figures import MISSING, Form, count, duration, milliseconds, percent, size, times

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One value of a row: its name, where it lies, how it is written, its unit where that is not written with it."""

    title: str
    path: tuple[str, ...]
    form: Form
    unit: str = ""
    short: str = ""  # the name below the heading of its group

    @property
    def heading(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def value(self, row: Row) -> float | None:
        found: Any = row
        for key in self.path:
            found = (found or {}).get(key)
        return found

    def cell(self, row: Row) -> str:
        return self.form(self.value(row))

    def quantity(self, row: Row) -> str:
        """The cell with its unit."""
        cell = self.cell(row)
        return cell if cell == MISSING or not self.unit else f"{cell} {self.unit}"


@dataclass(frozen=True)
class Group:
    """Columns under a common heading."""

    title: str
    columns: tuple[Column, ...]


TOP1_VAL = Column("top-1 val", ("top1_val",), percent, "%")
TOP1_TEST = Column("top-1 test", ("top1_test",), percent, "%")
AGREEMENT = Column("agreement", ("agreement",), percent, "%")
PARAMS = Column("params", ("params",), count)
NONZERO = Column("non-zero", ("nonzero",), count)
MACS = Column("MACs", ("macs",), count)
FILE = Column("file", ("file_bytes",), size)
BATCH_1_P50 = Column("batch 1 p50", ("latency_ms", "batch1", "p50"), milliseconds, "ms", "p50")
BATCH_1_P95 = Column("batch 1 p95", ("latency_ms", "batch1", "p95"), milliseconds, "ms", "p95")
BATCH_32_P50 = Column("batch 32 p50", ("latency_ms", "batch32", "p50"), milliseconds, "ms", "p50")
BATCH_32_P95 = Column("batch 32 p95", ("latency_ms", "batch32", "p95"), milliseconds, "ms", "p95")
WALL_TIME = Column("wall time", ("seconds",), duration)

ACCURACY = Group("Accuracy, %", (TOP1_VAL, TOP1_TEST, AGREEMENT))
SIZE = Group("Size and work", (PARAMS, NONZERO, MACS, FILE))
BATCH_1 = Group("Batch of 1, ms", (BATCH_1_P50, BATCH_1_P95))
BATCH_32 = Group("Batch of 32, ms", (BATCH_32_P50, BATCH_32_P95))
TIME = Group("Making it", (WALL_TIME,))
RATIOS = Group(
    "Times smaller or faster than the teacher",
    (
        Column("fewer params", ("ratios", "params"), times),
        Column("fewer MACs", ("ratios", "macs"), times),
        Column("smaller file", ("ratios", "file_bytes"), times),
        Column("faster at batch 1", ("ratios", "latency_batch1"), times),
        Column("faster at batch 32", ("ratios", "latency_batch32"), times),
    ),
)
