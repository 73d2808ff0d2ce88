"""Where a study is kept, fit for many processes of which any may be killed at any moment.

All locks are the system's (`flock`): it lets go of them when a process ends, however it ends. So a worker holds a lock
for as long as its trial runs, its lease, and a trial without one is dead: no clocks, no heartbeats. On a cluster the
folder must be on a file system that honours flock between machines (NFSv4, Lustre, GPFS).
"""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from kd.checkpoint import atomic_write
from kd.errors import InputError

FILE, NAME = "journal.log", "study.txt"
Direction = Literal["maximize", "minimize"]


def open_study(
    folder: Path, identity: dict[str, Any], directions: Sequence[Direction], url: str | None = None
) -> optuna.Study:
    """The study in `folder`, or in the data base at `url`; to be called in `turn`.

    `identity` is what must not change between two runs of one search; InputError names the first entry that did, or
    says why the data base cannot be had.
    """
    study = optuna.create_study(
        storage=_storage(folder, url),
        study_name="search" if url is None else _name(folder),
        directions=list(directions),
        load_if_exists=True,
    )
    then, now = study.user_attrs.get("identity"), json.loads(json.dumps(identity))
    if then is None:
        study.set_user_attr("identity", now)
    elif then != now:
        name = next(name for name in now if then.get(name) != now[name])
        raise InputError(name, now[name], f"the search in {folder} was started with {then.get(name)}")
    return study


def read_study(folder: Path, url: str | None = None) -> optuna.Study:
    """The study that `open_study` began, to look at, also while it goes on: nothing is written.

    Raises InputError where there is none.
    """
    kept = folder / (FILE if url is None else NAME)
    if not kept.exists():
        raise InputError("search", str(folder), "holds no study")
    storage = JournalStorage(JournalFileBackend(str(kept))) if url is None else _storage(folder, url)
    try:
        return optuna.load_study(study_name="search" if url is None else kept.read_text(), storage=storage)
    except KeyError as error:
        raise InputError("search", str(folder), "holds no study") from error


def _name(folder: Path) -> str:
    """Of the study in a data base that holds others too; the folder may be moved."""
    path = folder / NAME
    if not path.exists():
        atomic_write(path, f"search-{uuid.uuid4().hex}")
    return path.read_text()


def _storage(folder: Path, url: str | None) -> BaseStorage:
    if url is None:
        journal = folder / FILE
        lock = _JournalLock(journal)
        backend = JournalFileBackend(str(journal), lock)
        lock.acquire()  # which mends it, before the first look
        lock.release()
        return JournalStorage(backend)
    try:
        return RDBStorage(url)
    except Exception as error:  # the data base's driver has its own classes, or is not there
        raise InputError("search.storage", url, f"cannot be opened: {str(error).splitlines()[0]}") from error


class _JournalLock(JournalFileOpenLock):
    """Optuna's own is a file that a killed process leaves behind. This one also mends what such a process has torn."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.whole = journal, 0  # bytes of whole lines that were seen
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        self._file = (self.journal.parent / f"{FILE}.lock").open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._mend()
        return True

    def release(self) -> None:
        assert self._file is not None
        self._file.close()

    def _mend(self) -> None:
        """Cut off a torn last line: Optuna would append to it and never read past it again."""
        with self.journal.open("r+b") as file:
            file.seek(self.whole)
            lines = file.read().splitlines(keepends=True)
            for number, line in enumerate(lines):
                if line.endswith(b"\n") and _is_json(line):
                    self.whole += len(line)
                elif number == len(lines) - 1:
                    file.truncate(self.whole)
                else:
                    told = f"is corrupted {self.whole} bytes from the start: remove it to search anew"
                    raise InputError("search", str(self.journal), told)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """One process at a time looks at the study and decides."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "turn.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Lease:
    """What a living worker holds of its trial; `take` answers None where another does."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    @classmethod
    def take(cls, folder: Path, number: int) -> Lease | None:
        (folder / "leases").mkdir(exist_ok=True)
        file = (folder / "leases" / str(number)).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return cls(file)

    def release(self) -> None:
        self._file.close()
