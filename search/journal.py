"""Optuna's journal in a folder, made fit to survive a kill at any moment."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from kd.errors import InputError

FILE = "journal.log"


def open_study(folder: Path, identity: dict[str, Any]) -> optuna.Study:
    """The study in `folder`, to be held by `alone`: maximises accuracy, minimises MACs, nothing in it is running.

    `identity` is what must not change between two runs of one search; InputError names the first entry that did.
    """
    _mend(folder / FILE)
    (folder / f"{FILE}.lock").unlink(missing_ok=True)  # a killed process never gives Optuna's own lock back
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / FILE))),
        study_name="search",
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    then, now = study.user_attrs.get("identity"), json.loads(json.dumps(identity))
    if then is None:
        study.set_user_attr("identity", now)
    elif then != now:
        name = next(name for name in now if then.get(name) != now[name])
        raise InputError(name, now[name], f"the search in {folder} was started with {then.get(name)}")
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # its process is gone; samplers ignore it
    return study


def _mend(journal: Path) -> None:
    """Cut off a last line that a kill left torn: Optuna would append to it and never read past it again."""
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    for number, line in enumerate(lines):
        if line.endswith(b"\n") and _is_json(line):
            continue
        if number < len(lines) - 1:
            raise InputError("search", str(journal), f"line {number + 1} is corrupted: remove it to search anew")
        with journal.open("r+b") as file:
            file.truncate(sum(map(len, lines[:-1])))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder` against other searches; the system lets go of it when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError("search", str(folder), "another process is searching there") from error
        yield
