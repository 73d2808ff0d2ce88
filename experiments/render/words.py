"""What a report says in sentences: what came out, and which stages made something worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.render.columns import Row, value
from experiments.render.figures import MISSING, percent, size, times

Report = Mapping[str, Any]

# Below these, differences are noise: points of top-1 lost, shares of time and of bytes gained.
POINTS, SLOWER, LARGER = 0.5, 0.05, 0.01
SHRINKING = ("prune", "lowrank")  # the kinds that are there for fewer MACs
TRAINED = ("teacher", "scratch", "student")  # the kinds that are made from no other artefact

# How to read the tables.
LEGEND = (
    "Agreement: the share of test images where a model answers as the teacher does. MACs: multiply-accumulates for one "
    "image; they count work, they are not speed. Latency: median (p50) and 95th percentile (p95) of one batch, all "
    "artefacts taking turns in one run. Gains: the teacher's value over this one's, so 4.00× is four times smaller or "
    "faster, and below 1 is worse."
)


def headline(report: Report) -> str:
    """What came out, against the teacher, in one sentence."""
    rows = report["rows"]
    if not rows:
        return "Nothing was measured."
    last, first = rows[-1], rows[0]
    found = (
        f"The deployed model, {last['name']}, takes {size(last['file_bytes'])} and reaches {_top1(last)} top-1 on test"
    )
    if last is first or first["kind"] != "teacher":
        return f"{found}."
    gains = (
        gain(value(last, "ratios", "macs"), "fewer MACs", "more MACs"),
        gain(value(last, "ratios", "file_bytes"), "smaller as a file", "larger as a file"),
        gain(value(last, "ratios", "latency_batch1"), "faster at batch 1", "slower at batch 1"),
    )
    known = ", ".join(filter(None, gains))
    return f"{found}, against the teacher's {_top1(first)}{f': {known}' if known else ''}."


def problems(rows: Sequence[Row]) -> list[list[str]]:
    """For each row, a sentence for everything that is worse than it was in the artefact that it was made from.

    That is the row before. A distilled student is held against the same net trained from scratch, where there is one.
    """
    found: list[list[str]] = []
    scratch = next((row for row in rows if row["kind"] == "scratch"), None)
    before = None
    for row in rows:
        if row["kind"] == "student":
            found.append(list(_no_better(row, scratch)))
        elif row["kind"] in TRAINED or before is None:
            found.append([])
        else:
            found.append(list(_worse(row, before)))
        before = before if row["kind"] == "scratch" else row
    return found


def data(report: Report) -> str:
    """What was learned from, in one sentence."""
    facts = report["data"]
    edges = facts["image_size"] if isinstance(facts["image_size"], Sequence) else [facts["image_size"]] * 2
    images = f"images of {' × '.join(map(str, edges))} pixels and {facts['channels']} channels"
    channels = images if facts["channels"] != 1 else images.removesuffix("s")
    split = ", ".join(f"{facts[key]:,} for {use}" for key, use in SPLITS if facts[key] is not None)
    return f"{facts['source']}: {channels}, {facts['classes']} classes; {split}."


SPLITS = (("train", "training"), ("val", "validation"), ("test", "testing"))


def environment(report: Report) -> list[tuple[str, str]]:
    """(what, which), for each fact of the environment."""
    return [(key.replace("_", " "), plain(found)) for key, found in report["environment"].items()]


def plain(found: Any) -> str:
    """A value of an environment or a config as people write it."""
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, Mapping):
        return ", ".join(f"{key} {plain(entry)}" for key, entry in found.items()) or MISSING
    if isinstance(found, list):
        return ", ".join(map(str, found)) or MISSING
    return MISSING if found is None else str(found)


def _top1(row: Row) -> str:
    return MISSING if row["top1_test"] is None else f"{percent(row['top1_test'])}%"


def gain(ratio: float | None, better: str, worse: str) -> str:
    """The ratio, or its inverse where it is below 1, and what it is; "" where it is not known."""
    if not ratio:
        return ""
    return f"{times(ratio)} {better}" if ratio >= 1 else f"{times(1 / ratio)} {worse}"


def _no_better(student: Row, scratch: Row | None) -> Iterator[str]:
    if scratch is None or student["top1_test"] is None or scratch["top1_test"] is None:
        return
    if student["top1_test"] <= scratch["top1_test"]:
        against = f"{_top1(student)} against {_top1(scratch)}"
        yield f"Not better on test than the same net trained from scratch ({against})."


def _worse(row: Row, before: Row) -> Iterator[str]:
    top1, then = row["top1_val"], before["top1_val"]
    if top1 is not None and then is not None and then - top1 > POINTS:
        yield f"Top-1 on validation is {then - top1:.2f} points lower than in the step before."
    for batch in (1, 32):
        path = ("latency_ms", f"batch{batch}", "p50")
        slower = _growth(value(before, *path), value(row, *path))
        if slower is not None and slower > SLOWER:
            yield f"{slower:.0%} slower at batch {batch} than the step before{_though(row, before)}."
    larger = _growth(before["file_bytes"], row["file_bytes"])
    if larger is not None and larger > LARGER:
        yield f"The file is {larger:.0%} larger than in the step before."
    more = _growth(before["macs"], row["macs"])
    if row["kind"] in SHRINKING and more is not None and more >= 0:
        yield f"Its MACs {'did not change' if more == 0 else f'rose by {more:.0%}'}."


def _though(row: Row, before: Row) -> str:
    more = _growth(before["macs"], row["macs"])
    return f", though its MACs fell by {-more:.0%}" if more is not None and more <= -0.01 else ""


def _growth(then: float | None, now: float | None) -> float | None:
    """By which share of `then` it grew."""
    return now / then - 1 if then and now is not None else None
