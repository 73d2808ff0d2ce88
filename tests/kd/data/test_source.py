from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kd.data import DataConfig
from kd.data.source import open_source
from kd.errors import InputError

Save = Callable[..., Path]


@pytest.mark.parametrize("name", ["digitz", "mnist", "/no/such/folder", "a/b/c", "../nowhere"])
def test_what_is_nowhere_is_refused_without_asking_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(InputError, match="is neither digits nor a folder nor a Hugging Face hub name"):
        open_source(DataConfig(source=name))


def test_a_file_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="is neither digits nor a folder"):
        open_source(DataConfig(source=str(tmp_path / "train.parquet")))


def test_one_class_is_too_few(save_folder: Save) -> None:
    root = save_folder({"train": {"a": 3}, "test": {"a": 1}})
    with pytest.raises(InputError, match="needs images of at least 2 classes"):
        open_source(DataConfig(source=str(root)))


def test_an_empty_part_is_named(save_folder: Save) -> None:
    root = save_folder({"train": {"a": 1, "b": 1}})
    (root / "test").mkdir()
    with pytest.raises(InputError, match="its test part holds no images"):
        open_source(DataConfig(source=str(root)))
