from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kd.data
from kd.batch import Needs, View
from kd.data import Augment, DataConfig
from kd.errors import InputError
from teachers import Cached, Teacher, cache


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(64, 7), nn.Linear(7, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.flatten(1)).tanh())


class Counting(Teacher):
    """Counts its calls, and dies at one of them."""

    def __init__(self, seed: int = 0, dies_at: int | None = None) -> None:
        super().__init__(Net(seed))
        self.calls, self.dies_at = 0, dies_at

    def __call__(self, view: View, needs: Needs) -> Any:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return super().__call__(view, needs)


def digits(views: int | None = 2, seed: int = 0) -> kd.data.Data:
    return kd.data.load(DataConfig(train_size=40, seed=seed, augment=Augment(crop=1, views=views)))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 16)


@pytest.fixture
def data() -> kd.data.Data:
    return digits()


EMBEDDING = Needs(embedding=True)


def test_answers_are_the_teachers_whoever_asks_for_what(data: kd.data.Data, tmp_path: Path) -> None:
    teacher = Counting()
    cached = Cached(teacher, tmp_path, data, EMBEDDING)
    for draw, index in [(0, [3, 17, 39]), (1, [0]), (0, [20, 3])]:
        view = data.view(torch.tensor(index), draw)
        stored, live = cached(view, EMBEDDING), teacher(view, EMBEDDING)
        torch.testing.assert_close(stored.logits, live.logits)
        torch.testing.assert_close(stored.embedding, live.embedding)
        assert cached(view, Needs()).embedding is None
    first = cached(data.view(torch.tensor([3, 17]), 0), Needs()).logits
    second = cached(data.view(torch.tensor([17, 5, 3]), 0), Needs()).logits
    assert torch.equal(first, second[[2, 0]])


def test_each_draw_is_computed_once_also_across_processes(data: kd.data.Data, tmp_path: Path) -> None:
    teacher, late = Counting(), Counting()
    cached = Cached(teacher, tmp_path, data)
    cached(data.view(torch.tensor([1]), 0), Needs())
    assert teacher.calls == 3  # chunks of 16 of 40 samples
    cached.fill()
    assert teacher.calls == 6
    again = Cached(late, tmp_path, data)
    for draw in (0, 1):
        view = data.view(torch.arange(40), draw)
        assert torch.equal(again(view, Needs()).logits, cached(view, Needs()).logits)
    assert late.calls == 0


def test_after_a_kill_only_what_is_missing_is_computed(data: kd.data.Data, tmp_path: Path) -> None:
    view = data.view(torch.arange(40), 0)
    with pytest.raises(KeyboardInterrupt):
        Cached(Counting(dies_at=3), tmp_path / "killed", data)(view, Needs())
    teacher = Counting()
    resumed = Cached(teacher, tmp_path / "killed", data)(view, Needs())
    assert teacher.calls == 1
    assert torch.equal(resumed.logits, Cached(Counting(), tmp_path / "whole", data)(view, Needs()).logits)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (_cut, "draw-0.f32"),
        (_flip, "draw-0.f32"),
        (_cut, "draw-0.marks"),
        (_flip, "draw-0.marks"),
        (Path.unlink, "draw-0.f32"),
    ],
)
def test_torn_rows_are_refused_and_computed_again(
    data: kd.data.Data, tmp_path: Path, spoil: Callable[[Path], None], name: str
) -> None:
    view = data.view(torch.arange(40), 0)
    first = Cached(Counting(), tmp_path, data)
    expected = first(view, Needs()).logits.clone()
    spoil(first.folder / name)
    teacher = Counting()
    assert torch.equal(Cached(teacher, tmp_path, data)(view, Needs()).logits, expected)
    assert teacher.calls == (3 if spoil is Path.unlink else 1)


def test_another_teacher_or_other_data_have_another_store(data: kd.data.Data, tmp_path: Path) -> None:
    stores = [
        Cached(Counting(), tmp_path, data),
        Cached(Counting(seed=1), tmp_path, data),
        Cached(Counting(), tmp_path, digits(seed=1)),
        Cached(Counting(), tmp_path, data, EMBEDDING),
    ]
    assert len({store.folder for store in stores}) == 4
    assert Cached(Counting(), tmp_path, data).folder == stores[0].folder


def test_unaugmented_images_are_answered_live(data: kd.data.Data, tmp_path: Path) -> None:
    teacher = Counting()
    cached = Cached(teacher, tmp_path, data)
    view = next(data.evaluation("val"))
    assert torch.equal(cached(view, Needs()).logits, teacher(view, Needs()).logits)
    assert torch.equal(cached.predict(view.x), teacher.predict(view.x))
    assert not list(cached.folder.glob("draw-*"))


def test_what_goes_beyond_the_store_is_answered_live(data: kd.data.Data, tmp_path: Path) -> None:
    teacher = Counting()
    cached = Cached(teacher, tmp_path, data)
    view = data.view(torch.tensor([0, 5]), 0)
    assert cached.ports(data.facts) == teacher.ports(data.facts)
    assert torch.equal(cached(view, EMBEDDING).embedding, teacher(view, EMBEDDING).embedding)
    assert torch.equal(cached(view, Needs(classifier=True)).extra["classifier"], teacher.model.head.weight)
    assert not list(cached.folder.glob("draw-*"))


def test_what_cannot_be_stored_is_refused_before_anything_is_written(data: kd.data.Data, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.augment\.views: null"):
        Cached(Counting(), tmp_path, digits(views=None))
    for needs in (Needs(stages=(-1,)), Needs(final=True)):
        with pytest.raises(InputError, match="maps are not stored"):
            Cached(Counting(), tmp_path, data, needs)
    assert not list(tmp_path.iterdir())
