"""Parquet files and a stand-in of the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd.data import DataConfig, load
from kd.data.images import Form, decode
from kd.data.source import open_source
from kd.data.table import Source
from kd.errors import InputError

NAMES = ["ant", "bee", "cow"]
LABELS = [2, 0, 1, 1, 0, 2, 2]
Noise = Callable[..., bytes]
SaveParquet = Callable[..., Path]


@pytest.fixture
def typed(noise: Noise) -> datasets.Dataset:
    """Images and labels with the library's types, between other columns."""
    features = {
        "id": datasets.Value("int64"),
        "img": datasets.Image(),
        "kind": datasets.ClassLabel(names=NAMES),
        "text": datasets.Value("string"),
    }
    images = [{"bytes": noise(i), "path": None} for i in range(len(LABELS))]
    columns = {"id": list(range(7)), "img": images, "kind": LABELS, "text": list("abcdefg")}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


@pytest.fixture
def save_parquet(tmp_path: Path, noise: Noise) -> SaveParquet:
    """Writes train.parquet and test.parquet with the columns given, and images, without the library's types."""

    def save(image: str = "image", test: dict[str, list[Any]] | None = None, **train: list[Any]) -> Path:
        for part, columns in (("train", train), ("test", test or train)):
            count = len(next(iter(columns.values())))
            images = [{"bytes": noise(i), "path": f"{i}.png"} for i in range(count)]
            pq.write_table(pa.table({image: images, **columns}), tmp_path / f"{part}.parquet")
        return tmp_path

    return save


def opened(folder: Path | str, **options: Any) -> Source:
    return open_source(DataConfig(source=str(folder), **options))


def check_images(source: Source, noise: Noise) -> None:
    """Rows come in any order and decode to what was written."""
    rows = [4, 0, 6]
    assert source.train.fetch(rows) == [noise(row) for row in rows]
    form = Form(3, (8, 8), False, "")
    assert decode(source.train.fetch([1])[0], form, "").equal(decode(noise(1), form, ""))


def test_typed_parquet(typed: datasets.Dataset, tmp_path: Path, noise: Noise) -> None:
    for part in ("train", "test"):
        typed.to_parquet(tmp_path / f"{part}.parquet")
    source = opened(tmp_path)
    assert source.names == tuple(NAMES)
    assert source.train.labels.tolist() == LABELS
    assert source.train.title(3) == "train row 3"
    check_images(source, noise)


def test_nothing_is_written_to_the_librarys_cache(
    typed: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "test"):
        typed.to_parquet(tmp_path / f"{part}.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    opened(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_large_parquet_file_is_mapped_from_the_librarys_cache(
    typed: datasets.Dataset, tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "test"):
        typed.to_parquet(tmp_path / f"{part}.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("kd.data.hugging_face._READ_AT_ONCE", 0)
    source = opened(tmp_path)
    assert list((tmp_path / "cache").rglob("*.arrow"))
    assert source.train.labels.tolist() == LABELS
    check_images(source, noise)


@pytest.mark.parametrize("image", ["image", "picture"])
def test_untyped_parquet_with_class_numbers(save_parquet: SaveParquet, noise: Noise, image: str) -> None:
    source = opened(save_parquet(image, label=LABELS))
    assert source.names == ("0", "1", "2")
    assert source.train.labels.tolist() == LABELS
    check_images(source, noise)


def test_untyped_parquet_with_class_names(save_parquet: SaveParquet) -> None:
    source = opened(save_parquet(animal=[NAMES[i] for i in LABELS]))
    assert source.names == tuple(NAMES)
    assert source.train.labels.tolist() == LABELS


def test_plain_bytes_are_images_too(tmp_path: Path, noise: Noise) -> None:
    table = pa.table({"png": [noise(i) for i in range(7)], "label": LABELS})
    for part in ("train", "test"):
        pq.write_table(table, tmp_path / f"{part}.parquet")
    check_images(opened(tmp_path), noise)


def test_the_stand_in_of_a_hub_set(typed: datasets.Dataset, monkeypatch: pytest.MonkeyPatch, noise: Noise) -> None:
    asked = []

    def stand_in(name: str) -> datasets.DatasetDict:
        asked.append(name)
        return datasets.DatasetDict(train=typed.select([0, 1, 2, 3, 4, 5, 6]), validation=typed.select([6, 0]))

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    source = opened("someone/animals")
    assert asked == ["someone/animals"]
    assert source.names == tuple(NAMES)
    check_images(source, noise)
    assert source.test is not None
    assert source.test.labels.tolist() == [2, 2]
    assert source.test.fetch([0]) == [noise(6)]


def test_what_the_hub_does_not_give_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_: str) -> None:
        raise ConnectionError("Couldn't reach it\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError) as caught:
        opened("someone/nothing")
    expected = "data.source: someone/nothing: is no folder, and the hub does not give it (Couldn't reach it on the Hub)"
    assert str(caught.value) == expected


def test_a_hub_set_without_a_test_split_says_what_it_has(
    typed: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda _: datasets.DatasetDict(train=typed, extra=typed))
    with pytest.raises(InputError, match=r"someone/animals: needs the splits .* has train, extra"):
        opened("someone/animals")


def test_columns_can_be_named(save_parquet: SaveParquet) -> None:
    folder = save_parquet(coarse=[0, 1, 0, 1, 0, 1, 0], fine=LABELS)
    assert opened(folder, image_column="image", label_column="fine").train.labels.tolist() == LABELS
    with pytest.raises(InputError, match=r"data.label_column: None: must be one of: coarse, fine; the columns are"):
        opened(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "lable"}, "data.label_column: lable: must be one of: label; the columns are image, label, x"),
        ({"label_column": "x"}, "data.label_column: x: must be one of: label; the columns are image, label, x"),
        ({"image_column": "label"}, "data.image_column: label: must be one of: image; the columns are image, label, x"),
    ],
)
def test_a_wrong_column_lists_the_right_ones(save_parquet: SaveParquet, options: dict[str, str], message: str) -> None:
    folder = save_parquet(label=LABELS, x=[0.5] * 7)
    with pytest.raises(InputError) as caught:
        opened(folder, **options)
    assert str(caught.value) == message


def test_a_column_that_test_lacks_is_named(save_parquet: SaveParquet) -> None:
    with pytest.raises(InputError, match=r"data.label_column: label: is no column of the test part: image, other"):
        opened(save_parquet(test={"other": LABELS}, label=LABELS))


@pytest.mark.parametrize("bad", [3, -1, None])
def test_a_label_outside_the_classes_is_named(save_parquet: SaveParquet, bad: int | None) -> None:
    with pytest.raises(InputError, match=rf"data.source: test row 1: has label {bad}, must be one of 3 classes, 0 1 2"):
        opened(save_parquet(test={"label": [0, bad, 1]}, label=LABELS))


def test_a_label_outside_the_names_is_named(typed: datasets.Dataset, tmp_path: Path) -> None:
    for part in ("train", "test"):
        typed.to_parquet(tmp_path / f"{part}.parquet")
    table = pq.read_table(tmp_path / "train.parquet")
    column = table.column_names.index("kind")
    spoilt = table.set_column(column, table.schema.field(column), [[2, 0, 1, 9, 0, 2, 2]])
    pq.write_table(spoilt, tmp_path / "train.parquet")
    with pytest.raises(InputError, match="train row 3: has label 9, must be one of 3 classes"):
        opened(tmp_path)


def test_numbers_that_count_something_else_are_no_classes(save_parquet: SaveParquet) -> None:
    with pytest.raises(InputError, match=r"data.label_column: label: holds no class numbers: 1000 in 3 rows"):
        opened(save_parquet(label=[0, 1, 1000]))


def test_a_missing_image_is_named_by_its_row(tmp_path: Path, noise: Noise) -> None:
    images = [{"bytes": noise(i), "path": None} for i in range(6)]
    for part, spoilt in (("train", [*images, None, *images]), ("test", images)):
        labels = [i % 2 for i in range(len(spoilt))]
        pq.write_table(pa.table({"image": spoilt, "label": labels}), tmp_path / f"{part}.parquet")
    with pytest.raises(InputError, match=r"data.source: train row 6: is broken or no image"):
        load(DataConfig(source=str(tmp_path)))


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_file_that_is_no_parquet_is_named(save_parquet: SaveParquet, part: str) -> None:
    folder = save_parquet(label=LABELS)
    (folder / f"{part}.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match=rf"{part}\.parquet: is no parquet file that can be read"):
        opened(folder)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_file_is_named(save_parquet: SaveParquet, part: str) -> None:
    folder = save_parquet(label=LABELS)
    (folder / f"{part}.parquet").unlink()
    with pytest.raises(InputError, match=rf"{part}\.parquet: is missing"):
        opened(folder)


def test_an_empty_file_holds_no_images(save_parquet: SaveParquet) -> None:
    folder = save_parquet(label=LABELS)
    pq.write_table(pq.read_table(folder / "test.parquet").slice(0, 0), folder / "test.parquet")
    with pytest.raises(InputError, match="its test part holds no images"):
        opened(folder)
