from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd.data import Augment, Data, DataConfig, load
from kd.errors import InputError

Save = Callable[..., Path]


@pytest.fixture
def folder(save_folder: Save) -> Path:
    """40 + 10 colour images of 8x8 pixels in two classes."""
    return save_folder({"train": {"cat": 24, "dog": 16}, "test": {"cat": 5, "dog": 5}})


def loaded(folder: Path, **options: Any) -> Data:
    return load(DataConfig(source=str(folder), workers=0, **options))


def pixels(data: Data, name: str) -> set[bytes]:
    """All images of a split, as a set: noise has no duplicates."""
    split = getattr(data, name)
    (images,) = split.read([torch.arange(len(split))])
    found = {image.numpy().tobytes() for image in images}
    assert len(found) == len(split)
    return found


def test_digits_are_split_in_strata() -> None:
    data = load(DataConfig())
    assert [len(data.train), len(data.val), len(data.test)] == [1146, 202, 449]
    assert data.facts.size == 1146
    for split in (data.val, data.test):
        count = split.labels.bincount()
        assert count.max() - count.min() <= 3
    assert (data.facts.classes, data.facts.channels, data.facts.image_size) == (10, 1, (8, 8))
    assert data.augment == Augment(crop=1)
    assert "449 of its images are held out" in data.notes[0]


def test_a_folder_has_its_own_test_part_and_a_validation_split_out_of_train(folder: Path) -> None:
    data = loaded(folder, val_fraction=0.25)
    assert data.train.labels.bincount().tolist() == [18, 12]
    assert data.val.labels.bincount().tolist() == [6, 4]
    assert data.test.labels.bincount().tolist() == [5, 5]
    assert len(pixels(data, "train") | pixels(data, "val") | pixels(data, "test")) == 50
    assert data.notes == ()
    assert data.augment == Augment(crop=1, flip=True)


def test_without_a_test_part_one_is_held_out_that_no_seed_moves(save_folder: Save) -> None:
    root = save_folder({"train": {"cat": 24, "dog": 16}})
    one, other = loaded(root), loaded(root, seed=1)
    assert pixels(one, "test") == pixels(other, "test")
    assert pixels(one, "val") != pixels(other, "val")
    assert one.test.labels.bincount().tolist() == [6, 4]
    assert one.notes == ("the source has no test part: 10 of its images are held out as one, stratified",)


def test_train_size_takes_a_part_of_what_validation_leaves(folder: Path) -> None:
    whole, some = loaded(folder), loaded(folder, train_size=10)
    assert pixels(some, "train") < pixels(whole, "train")
    assert pixels(some, "val") == pixels(whole, "val")
    assert some.train.labels.bincount().tolist() == [6, 4]
    assert some.notes == ("training uses a stratified subset of 10 images",)


@pytest.mark.parametrize("size", [1, 35])
def test_a_train_size_beyond_the_data_says_what_is_there(folder: Path, size: int) -> None:
    with pytest.raises(InputError, match=f"data.train_size: {size}: must be from 2, one image a class, to 34"):
        loaded(folder, train_size=size)


def test_a_class_that_cannot_be_split_is_named(save_folder: Save) -> None:
    root = save_folder({"train": {"cat": 24, "dog": 1}, "test": {"cat": 1}})
    with pytest.raises(InputError, match=r"data.val_fraction: 0.15: leaves no training image of the class dog"):
        loaded(root)
    shutil.rmtree(root / "test")
    with pytest.raises(InputError, match=r"data.source: .*leaves no training image of the class dog"):
        loaded(root)


def test_a_validation_fraction_that_takes_all_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"data.val_fraction: 0.99: leaves no training image of the class cat"):
        loaded(folder, val_fraction=0.99)


@pytest.mark.parametrize("in_memory", [True, False])
def test_facts_hold_the_moments_of_the_training_split(folder: Path, in_memory: bool) -> None:
    data = loaded(folder, in_memory=in_memory)
    (images,) = data.train.read([torch.arange(len(data.train))])
    x = images.double() / 255
    torch.testing.assert_close(torch.tensor(data.facts.mean).double(), x.mean((0, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(data.facts.std).double(), x.std((0, 2, 3), correction=0), atol=1e-6, rtol=0)
    assert torch.equal(data.facts.labels, data.train.labels)
    assert data.facts.names == ("cat", "dog")


def test_grey_sets_have_one_channel_and_one_colour_image_makes_three(save_folder: Save, noise: Callable) -> None:
    root = save_folder({"train": {"a": 8, "b": 8}, "test": {"a": 2, "b": 2}}, colour=False)
    assert loaded(root).facts.channels == 1
    (root / "test" / "a" / "000.png").write_bytes(noise(99))
    data = loaded(root)
    assert data.facts.channels == 3
    assert len(data.facts.mean) == 3


def test_unequal_sizes_need_an_image_size(folder: Path, noise: Callable) -> None:
    (folder / "test" / "dog" / "003.png").write_bytes(noise(0, (9, 7)))
    with pytest.raises(InputError, match=r"data.image_size: None: must be set: .* is 8x8 and .*003.png is 9x7 pixels"):
        loaded(folder)
    assert loaded(folder, image_size=12).facts.image_size == (12, 12)


def test_oblong_images_stay_oblong(save_folder: Save) -> None:
    data = loaded(save_folder({"train": {"a": 8, "b": 8}, "test": {"a": 2}}, size=(10, 6)))
    assert data.facts.image_size == (6, 10)
    assert next(data.evaluation("test")).x.shape == (2, 3, 6, 10)


def test_a_broken_image_among_good_ones_is_named(folder: Path) -> None:
    path = folder / "train" / "cat" / "017.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=f"data.source: {path}: is broken or no image"):
        loaded(folder)


def test_large_sets_stream_and_small_ones_do_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(loaded(folder).train).__name__
    monkeypatch.setattr("kd.data.loading._MEMORY", 50 * 8 * 8 * 3 - 1)
    assert [kind, type(loaded(folder).train).__name__] == ["InMemory", "Streamed"]
