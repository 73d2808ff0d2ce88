from __future__ import annotations

import os
from pathlib import Path

import pytest
from optuna.trial import TrialState

from kd.errors import InputError
from search.journal import alone, open_study


def add(folder: Path, *tops: float) -> None:
    study = open_study(folder, {})
    for top in tops:
        trial = study.ask()
        trial.suggest_float("width", 0, 1)
        study.tell(trial, [top, 1.0])


def tops(folder: Path) -> list[float]:
    return [trial.values[0] for trial in open_study(folder, {}).get_trials(states=(TrialState.COMPLETE,))]


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_torn_last_line_is_cut_off_and_the_study_goes_on(tmp_path: Path, cut: int) -> None:
    add(tmp_path, 1.0, 2.0)
    journal = tmp_path / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert tops(tmp_path) == [1.0]
    add(tmp_path, 3.0)
    assert tops(tmp_path) == [1.0, 3.0]


def test_garbage_at_the_end_is_cut_off(tmp_path: Path) -> None:
    add(tmp_path, 1.0)
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b"\0\0\0\n")
    add(tmp_path, 2.0)
    assert tops(tmp_path) == [1.0, 2.0]


def test_a_journal_broken_in_the_middle_is_refused(tmp_path: Path) -> None:
    add(tmp_path, 1.0)
    journal = tmp_path / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"{\n", *lines[2:]]))
    with pytest.raises(InputError, match="line 2 is corrupted"):
        open_study(tmp_path, {})


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    add(tmp_path, 1.0)
    os.symlink(tmp_path / "journal.log", tmp_path / "journal.log.lock")  # what Optuna leaves behind
    add(tmp_path, 2.0)  # would wait for 30 seconds
    assert tops(tmp_path) == [1.0, 2.0]


def test_a_trial_that_was_cut_off_no_longer_runs(tmp_path: Path) -> None:
    open_study(tmp_path, {}).ask()
    assert [trial.state for trial in open_study(tmp_path, {}).trials] == [TrialState.FAIL]


def test_a_search_of_another_identity_is_refused(tmp_path: Path) -> None:
    open_study(tmp_path, {"search.seed": 1, "data": (1, 2)})
    open_study(tmp_path, {"search.seed": 1, "data": (1, 2)})
    with pytest.raises(InputError, match=r"search\.seed: 2: .*started with 1"):
        open_study(tmp_path, {"search.seed": 2, "data": (1, 2)})


def test_two_searches_in_one_folder_are_refused(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(InputError, match="another process"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass
