"""A sweep over the zoo: a row for each model and way of treating it, found in a process of its own, kept as JSON.

A model that fails, crashes or takes too long is a row too. What is finished is not done again, so that a sweep goes on
where it was stopped.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.latency import torch_threads
from experiments.render.figures import MISSING
from kd.checkpoint import atomic_write, load_json, save_json
from kd.console import say
from kd.errors import InputError
from students import zoo

NAMES = (Path(__file__).parent / "zoo.txt").read_text().split()
CLASSES = 100
_LONGEST = 300  # letters of an exception

Row = dict[str, Any]
Tell = Callable[[Row], None]


@dataclass(frozen=True)
class SweepConfig:
    """Which models are swept, and how.

    Attributes:
        out: where a file for each model and way is kept.
        model: examine this one alone, here, even if it was done before.
        models: which are swept; none: the 98 of experiments/zoo.txt.
        ways: what is done with them.
        limit: seconds a model may take.
        write: the page, with all that was found so far.
    """

    out: str
    model: str | None = None
    models: tuple[str, ...] = ()
    ways: tuple[str, ...] = ()
    limit: float = 180.0
    write: str | None = None

    def __post_init__(self) -> None:
        for name in (*self.models, *([self.model] if self.model else [])):
            zoo.published(name)
        if not self.limit > 0:
            raise InputError("limit", self.limit, "must be above 0")

    def path(self, way: str, name: str) -> Path:
        return Path(self.out) / way / f"{name}.json"


class Refuted(Exception):
    """What a check has found."""


def hold(true: bool, why: str) -> None:
    """Raise Refuted unless it is true."""
    if not true:
        raise Refuted(why)


def check(row: Row, what: str, work: Callable[[], None], tell: Tell) -> None:
    """Do `work` and note what it raises: "doing" says what is under way, "failed" what did not hold."""
    tell(row | {"doing": what})
    try:
        work()
    except Exception as error:  # whatever a net, a stage or a runtime raises is what the row has to say
        kind = "" if isinstance(error, Refuted) else f"{type(error).__name__}: "
        row["failed"][what] = " ".join(f"{kind}{error}".split())


def sweep(config: SweepConfig, alone: Callable[[str, str, str, float], Row]) -> None:
    """Every model in every way that was not finished before, one after the other, each by `alone`."""
    todo = [
        (name, way)
        for way in config.ways
        for name in config.models or NAMES
        if finished(config.path(way, name)) is None
    ]
    for number, (name, way) in enumerate(todo, 1):
        row = alone(name, way, config.out, config.limit)
        failed = "; ".join(f"{what}: {why}" for what, why in row["failed"].items())
        say(f"{number}/{len(todo)} {way} {name}: {failed or 'holds'}")


def alone(command: Sequence[str], path: Path, start: Row, limit: float) -> Row:
    """The row that `command` leaves at `path`, in a process of its own that may crash or be stopped."""
    path.unlink(missing_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", *command[1:]],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = child.communicate(timeout=limit)
        why = f"the process ended with {child.returncode}: {last(errors)}"
    except subprocess.TimeoutExpired:
        why = f"more than {limit:g} s"
    finally:
        _end(child)
    row = load_json(path) if path.exists() else start | {"failed": {}, "doing": "start"}
    if "doing" in row:
        row["failed"][row.pop("doing")] = why
        save_json(path, row)
    return row


def show(page: str, path: Path | None) -> None:
    """The page, in its file or on the terminal."""
    if path:
        atomic_write(path, page)
    else:
        print(page, end="")


def _end(child: subprocess.Popen[str]) -> None:
    """With what it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def one(path: Path, examine: Callable[[Tell], Row]) -> Row:
    """The row of a model that is examined here, kept as it grows."""
    write = partial(save_json, path)
    with torch_threads(1):
        row = examine(write)
    write(row)
    return row


def finished(path: Path) -> Row | None:
    """The row, where it is."""
    row = load_json(path) if path.exists() else {"doing": "start"}
    return None if "doing" in row else row


def finished_rows(out: str, way: str, names: Iterable[str]) -> dict[str, Row]:
    """By name, of those that are."""
    found = {name: finished(SweepConfig(out).path(way, name)) for name in names}
    return {name: row for name, row in found.items() if row is not None}


def last(text: str) -> str:
    return (text.strip().splitlines() or ["without a word"])[-1]


def words(command: str, name: str, way: str, first: str) -> list[str]:
    """The command of one row, anew; the `first` way needs no mention."""
    made = ["python", "-m", f"experiments.{command}", "--model", name]
    return made if way == first else [*made, "--ways", f"[{way}]"]


def failures(rows: Iterable[Row], command: Callable[[str], Sequence[str]]) -> str:
    """A line for each row of which something failed: the `command` of its model, and the exceptions."""
    lines = [f"- `{shlex.join(command(row['name']))}`: {_why(row)}" for row in rows if row["failed"]]
    return "\n".join(lines) or "Nothing."


def _why(row: Row) -> str:
    told = "; ".join(f"{what}: {why}" for what, why in row["failed"].items())
    return told.replace("`", "'") if len(told) <= _LONGEST else told[:_LONGEST].replace("`", "'") + " ..."


def examined(rows: Sequence[Row], count: int) -> str:
    """How many of so many were."""
    return "all were examined" if len(rows) == count else f"{count - len(rows)} have still to be examined"


def verdict(row: Row, failed: Iterable[str]) -> str:
    return ("no: " + ", ".join(failed) if failed else "yes") if row else MISSING


def number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def change(row: Mapping[str, Any], cost: str) -> str:
    """Millions before and after."""
    sizes = [row[when][cost] / 1e6 for when in ("before", "after") if when in row]
    return " → ".join(f"{size:.{2 if cost == 'params' else 0}f}" for size in sizes) or MISSING


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest logit."""
    hold(found.shape == expected.shape, f"answers have the shape {tuple(found.shape)}")
    return float((found - expected).abs().max() / expected.abs().max())
