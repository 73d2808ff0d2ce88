from __future__ import annotations

from pathlib import Path

import pytest

from kd.errors import InputError
from search.storage import FILE, open_study, read_study

GOALS = ("maximize", "minimize")


def tops(folder: Path, url: str | None = None) -> list[float]:
    return [trial.values[0] for trial in read_study(folder, url).trials]


def add(folder: Path, top: float, url: str | None = None) -> None:
    study = open_study(folder, {}, GOALS, url)
    study.tell(study.ask(), [top, float("inf")])


def test_a_study_is_read_as_it_stands_and_nothing_is_written(tmp_path: Path) -> None:
    for number, top in enumerate((1.0, 2.0), 1):
        add(tmp_path, top)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert tops(tmp_path) == [1.0, 2.0][:number]
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_worker_is_about_to_write_is_left_to_it(tmp_path: Path) -> None:
    add(tmp_path, 1.0)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    before = (tmp_path / FILE).read_bytes()
    assert tops(tmp_path) == [1.0]
    assert (tmp_path / FILE).read_bytes() == before


def test_of_a_data_base_the_study_of_the_folder_is_read(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    for name, top in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        add(tmp_path / name, top, url)
    assert (tops(tmp_path / "a", url), tops(tmp_path / "b", url)) == ([1.0], [2.0])
    (tmp_path / "a/study.txt").write_text("search-of-another")
    with pytest.raises(InputError, match="holds no study"):
        read_study(tmp_path / "a", url)


@pytest.mark.parametrize("url", [None, "sqlite:///studies.db"])
def test_where_there_is_none_that_is_told_and_nothing_is_made(tmp_path: Path, url: str | None) -> None:
    with pytest.raises(InputError, match="holds no study"):
        read_study(tmp_path, url)
    assert not list(tmp_path.iterdir())
