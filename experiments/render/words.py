"""What a report says in sentences: what came out, and which stages made something worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.render.columns import BATCH_1_P50, BATCH_32_P50, FILE, MACS, TOP1_TEST, TOP1_VAL, Column, Row
from experiments.render.figures import MISSING, percent, times

Report = Mapping[str, Any]

# Below these, differences are noise: points of top-1 lost, shares of time and of bytes gained.
POINTS, SLOWER, LARGER = 0.5, 0.05, 0.01
BASELINES = ("teacher", "scratch")
SHRINKING = ("prune", "lowrank")  # the kinds that are there for fewer MACs

# ratio -> what it is of, and its names above and below 1
GAINS: dict[str, tuple[Column, str, str]] = {
    "macs": (MACS, "fewer MACs", "more MACs"),
    "file_bytes": (FILE, "smaller file", "larger file"),
    "latency_batch1": (BATCH_1_P50, "faster at batch 1", "slower at batch 1"),
    "latency_batch32": (BATCH_32_P50, "faster at batch 32", "slower at batch 32"),
}


class Gain(NamedTuple):
    """The deployed model against the teacher in one respect: "4.00×", "smaller file"; or worse, "larger file"."""

    factor: str
    label: str
    worse: bool
    now: str
    teacher: str


def gains(report: Report) -> list[Gain]:
    """What the last row gained over the first, where that is a teacher and another one."""
    rows = report["rows"]
    if len(rows) < 2 or rows[0]["kind"] != "teacher":
        return []
    first, last = rows[0], rows[-1]
    found = []
    for name, (column, better, worse) in GAINS.items():
        ratio = last["ratios"][name]
        if ratio:
            lost = ratio < 1
            factor = times(1 / ratio if lost else ratio)
            found.append(Gain(factor, worse if lost else better, lost, column.quantity(last), column.quantity(first)))
    return found


def headline(report: Report) -> str:
    """What came out, against the teacher, in one sentence."""
    rows = report["rows"]
    if not rows:
        return "Nothing was measured."
    last, gained = rows[-1], gains(report)
    what = f"{last['name']} takes {FILE.cell(last)} and reaches {TOP1_TEST.quantity(last)} top-1 on test"
    if not gained:
        return f"{what}."
    factors = ", ".join(f"{gain.factor} {gain.label}" for gain in gained)
    return f"The deployed model {what} against the teacher's {TOP1_TEST.quantity(rows[0])}: {factors}."


def problems(rows: Sequence[Row]) -> list[list[str]]:
    """For each row the sentences on what its stage made worse than it is in the row before.

    A distilled student is held against the same net from scratch, where that was trained; baselines against nothing.
    """
    return [list(_problems(row, before)) for row, before in zip(rows, [None, *rows], strict=False)]


def notes(report: Report) -> list[tuple[str, str]]:
    """All sentences that rows, data and report carry, each with the name of its row, or "" for the whole."""
    of_rows = [(row["name"], note) for row in report["rows"] for note in row["notes"]]
    return of_rows + [("", note) for note in (*report["data"]["notes"], *report["notes"])]


def about_data(report: Report) -> str:
    """What was learned from, in one sentence, and the seed."""
    data = report["data"]
    height, width = data["image_size"]
    kind = {1: "grey", 3: "colour"}.get(data["channels"], f"{data['channels']}-channel")
    splits = f"{data['train']:,} to train on, {data['val']:,} for validation, {data['test']:,} for the test"
    images = f"{kind} images of {height} × {width} pixels in {data['classes']} classes"
    return f"{data['source']}: {images}; {splits}. Seed {_plain(report['seed'])}."


def about_measures(report: Report) -> str:
    """How the tables are to be read."""
    runtimes = sorted({row["latency_ms"]["runtime"] for row in report["rows"] if row["latency_ms"]})
    return (
        "Agreement: the share of test images on which a model says what the teacher says. MACs: multiply-accumulates "
        "for an image, which are work and not speed. Latency: median (p50) and 95th percentile (p95) of a batch on "
        f"{' and '.join(runtimes) or MISSING}, all models taking turns in one run."
    )


def about_environment(report: Report) -> list[tuple[str, str]]:
    """Pairs of a label and what is known of it."""
    return [(label.replace("_", " "), _plain(value)) for label, value in report["environment"].items()]


def _plain(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)


def _problems(row: Row, before: Row | None) -> Iterator[str]:
    if before is None or row["kind"] in BASELINES or before["kind"] == "teacher":
        return
    than = f"than {before['name']}"
    for column, split in ((TOP1_VAL, "validation"), (TOP1_TEST, "test")):
        then, now = column.value(before), column.value(row)
        if then is not None and now is not None and then - now > POINTS:
            yield f"{then - now:.1f} points lower on {split} {than}: {percent(now)} % after {percent(then)} %."
    for column, batch in ((BATCH_1_P50, "batch 1"), (BATCH_32_P50, "batch 32")):
        slower = _growth(column, before, row)
        if slower is not None and slower > SLOWER:
            yield f"{slower:.0%} slower at {batch} {than}{_though(before, row)}."
    larger = _growth(FILE, before, row)
    if larger is not None and larger > LARGER:
        yield f"The file is {larger:.0%} larger {than}."
    more = _growth(MACS, before, row)
    if row["kind"] in SHRINKING and more is not None and more >= 0:
        yield f"No fewer MACs {than}."


def _though(before: Row, row: Row) -> str:
    more = _growth(MACS, before, row)
    return f", though its MACs fell by {-more:.0%}" if more is not None and more <= -LARGER else ""


def _growth(column: Column, before: Row, row: Row) -> float | None:
    """By which share of what it was before a value grew."""
    then, now = column.value(before), column.value(row)
    return now / then - 1 if then and now is not None else None
