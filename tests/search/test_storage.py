from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from optuna.trial import TrialState

from kd.errors import InputError
from search.storage import FILE, Lease, open_study, turn

GOALS = ("maximize", "minimize")


def add(folder: Path, *tops: float, url: str | None = None) -> None:
    study = open_study(folder, {}, GOALS, url)
    for top in tops:
        trial = study.ask()
        trial.suggest_float("width", 0, 1)
        study.tell(trial, [top, 1.0])


def tops(folder: Path, url: str | None = None) -> list[float]:
    trials = open_study(folder, {}, GOALS, url).get_trials(states=(TrialState.COMPLETE,))
    return [trial.values[0] for trial in trials]


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_torn_last_line_is_cut_off_and_the_study_goes_on(tmp_path: Path, cut: int) -> None:
    add(tmp_path, 1.0, 2.0)
    journal = tmp_path / FILE
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert tops(tmp_path) == [1.0]
    add(tmp_path, 3.0)
    assert tops(tmp_path) == [1.0, 3.0]


def test_what_another_process_tore_is_cut_off_while_this_one_is_at_it(tmp_path: Path) -> None:
    study = open_study(tmp_path, {}, GOALS)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    study.tell(study.ask(), [1.0, 1.0])
    assert tops(tmp_path) == [1.0]


def test_garbage_at_the_end_is_cut_off(tmp_path: Path) -> None:
    add(tmp_path, 1.0)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b"\0\0\0\n")
    add(tmp_path, 2.0)
    assert tops(tmp_path) == [1.0, 2.0]


def test_a_journal_broken_in_the_middle_is_refused(tmp_path: Path) -> None:
    add(tmp_path, 1.0)
    journal = tmp_path / FILE
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"{\n", *lines[2:]]))
    with pytest.raises(InputError, match=f"is corrupted {len(lines[0])} bytes from the start"):
        open_study(tmp_path, {}, GOALS)


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    add(tmp_path, 1.0)
    process = multiprocessing.get_context("fork").Process(target=_dies_with_the_lock, args=(tmp_path,))
    process.start()
    process.join()
    add(tmp_path, 2.0)
    assert tops(tmp_path) == [1.0, 2.0]


def _dies_with_the_lock(folder: Path) -> None:
    from search.storage import _JournalLock

    lock = _JournalLock(folder / FILE)
    lock.acquire()
    os._exit(1)


def test_a_lease_is_held_by_one_until_it_lets_go_or_dies(tmp_path: Path) -> None:
    first = Lease.take(tmp_path, 3)
    assert first is not None
    assert Lease.take(tmp_path, 3) is None
    other = Lease.take(tmp_path, 4)
    assert other is not None
    first.release()
    process = multiprocessing.get_context("fork").Process(target=_dies_with_the_lease, args=(tmp_path,))
    process.start()
    process.join()
    assert Lease.take(tmp_path, 3) is not None


def _dies_with_the_lease(folder: Path) -> None:
    lease = Lease.take(folder, 3)
    os._exit(int(lease is None))


def test_turns_do_not_overlap(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_counts_up, args=(tmp_path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert int((tmp_path / "count").read_text()) == 4 * 50


def _counts_up(folder: Path) -> None:
    for _ in range(50):
        with turn(folder):
            path = folder / "count"
            path.write_text(str(int(path.read_text() if path.exists() else "0") + 1))


def test_a_search_of_another_identity_is_refused(tmp_path: Path) -> None:
    open_study(tmp_path, {"search.seed": 1, "data": (1, 2)}, GOALS)
    open_study(tmp_path, {"search.seed": 1, "data": (1, 2)}, GOALS)
    with pytest.raises(InputError, match=r"search\.seed: 2: .*started with 1"):
        open_study(tmp_path, {"search.seed": 2, "data": (1, 2)}, GOALS)


def test_a_data_base_holds_several_studies_and_folders_may_move(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    for name, top in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        add(tmp_path / name, top, url=url)
    (tmp_path / "a").rename(tmp_path / "c")
    assert (tops(tmp_path / "c", url), tops(tmp_path / "b", url)) == ([1.0], [2.0])


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////no/such/place/study.db", "oracle://nowhere"])
def test_a_data_base_that_cannot_be_had_is_one_line(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"search\.storage: .*cannot be opened"):
        open_study(tmp_path, {}, GOALS, url)
