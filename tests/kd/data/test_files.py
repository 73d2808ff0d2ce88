from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kd.data.files import digits, image_folder
from kd.errors import InputError

Save = Callable[..., Path]


def test_digits_span_the_range_of_bytes() -> None:
    source = digits()
    pixels = np.stack(source.train.fetch(list(range(1797))))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels.reshape(1797, 64), np.rint(load_digits().data * 255 / 16))
    assert source.train.labels.tolist() == load_digits().target.tolist()
    assert source.test is None
    assert source.names == tuple("0123456789")


def test_classes_are_the_folders_in_order(save_folder: Save) -> None:
    root = save_folder({"train": {"dog": 2, "cat": 3}, "val": {"dog": 1}})
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    source = image_folder(root)
    assert source.names == ("cat", "dog")
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.train.title(3) == str(root / "train" / "dog" / "000.png")
    assert source.test is not None
    assert source.test.labels.tolist() == [1]


def test_test_goes_before_val(save_folder: Save) -> None:
    root = save_folder({"train": {"a": 1, "b": 1}, "val": {"a": 1}, "test": {"b": 2}})
    test = image_folder(root).test
    assert test is not None
    assert test.labels.tolist() == [1, 1]


def test_images_in_folders_below_a_class_belong_to_it(save_folder: Save) -> None:
    root = save_folder({"train": {"a/one": 2, "a/two": 1, "b": 1}})
    assert image_folder(root).train.labels.tolist() == [0, 0, 0, 1]


def test_identity_follows_the_content_and_not_the_place(save_folder: Save, tmp_path: Path) -> None:
    root = save_folder({"train": {"a": 2, "b": 2}})
    before = image_folder(root).identity
    moved = root.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert image_folder(moved).identity == before
    (moved / "train" / "a" / "001.png").unlink()
    assert image_folder(moved).identity != before


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold train.parquet and test.parquet, or train/CLASS/IMAGE"):
        image_folder(tmp_path)


def test_a_class_of_test_that_train_lacks_is_named(save_folder: Save) -> None:
    root = save_folder({"train": {"a": 1, "b": 1}, "test": {"a": 1, "zebra": 1}})
    with pytest.raises(InputError, match=r"test/zebra: is no class of the train part: a, b"):
        image_folder(root)


def test_a_class_without_images_is_named(save_folder: Save) -> None:
    with pytest.raises(InputError, match=r"train/b: holds no images"):
        image_folder(save_folder({"train": {"a": 1, "b": 0}}))


def test_an_empty_train_folder_is_named(save_folder: Save) -> None:
    root = save_folder({"test": {"a": 1}})
    (root / "train").mkdir()
    with pytest.raises(InputError, match=r"/train: holds no folder of a class"):
        image_folder(root)
