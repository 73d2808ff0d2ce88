"""What training reads: pixels that follow from (seed, draw, index) alone, whatever the way they come."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from kd.batch import Demands, View
from kd.data import Augment, Data, DataConfig, load
from kd.errors import InputError

Save = Callable[..., Path]
PLAIN = Augment(crop=1, flip=True)
FULL = Augment(crop=1, flip=True, scale=(0.5, 1.0), erase=0.3, mixup=0.4, cutmix=1.0)


@pytest.fixture
def folder(save_folder: Save) -> Path:
    return save_folder({"train": {"cat": 24, "dog": 16}, "test": {"cat": 5, "dog": 5}})


def loaded(folder: Path, augment: Augment = PLAIN, **options: Any) -> Data:
    return load(DataConfig(source=str(folder), augment=augment, **{"workers": 0, **options}))


def assert_equal(one: View, other: View) -> None:
    assert one.draw == other.draw
    for name in ("x", "y", "index"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def flat(batches: Iterator[tuple[View, ...]]) -> list[View]:
    return [view for views in batches for view in views]


@pytest.mark.parametrize("augment", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_loop_cannot_tell_memory_from_stream(folder: Path, augment: Augment, workers: int) -> None:
    memory = loaded(folder, augment, in_memory=True)
    stream = loaded(folder, augment, in_memory=False, workers=workers)
    demands = Demands(views=2)
    for epoch in (0, 3):
        ways = [data.batches(epoch, batch_size=8, demands=demands) for data in (memory, stream)]
        for one, other in zip(*map(flat, ways), strict=True):
            assert_equal(one, other)
    for name in ("train", "val", "test"):
        for one, other in zip(memory.evaluation(name, 4), stream.evaluation(name, 4), strict=True):  # type: ignore[arg-type]
            assert_equal(one, other)
    assert memory.fingerprint() == stream.fingerprint()


@pytest.mark.parametrize("augment", [PLAIN, FULL], ids=["plain", "full"])
def test_pixels_do_not_depend_on_batches_or_order(folder: Path, augment: Augment) -> None:
    data = loaded(folder, augment)
    alone = {i: data.view(torch.tensor([i]), 2) for i in range(len(data.train))}
    for size, seed in ((5, 0), (34, 1)):
        for (view,) in data.batches(2, batch_size=size, seed=seed):
            for x, y, i in zip(view.x, view.y, view.index.tolist(), strict=True):
                assert torch.equal(x, alone[i].x[0])
                assert torch.equal(y, alone[i].y[0])


def test_an_epoch_is_a_permutation_without_the_last_incomplete_batch(folder: Path) -> None:
    data = loaded(folder)
    orders = {}
    for key in ((0, 0), (0, 1), (1, 0)):
        views = flat(data.batches(key[1], batch_size=8, seed=key[0]))
        assert [len(view.x) for view in views] == [8] * data.steps(8) == [8] * 4
        orders[key] = torch.cat([view.index for view in views]).tolist()
        assert len(set(orders[key])) == 32
        labels = torch.cat([view.y for view in views])
        assert torch.equal(labels, data.train.labels[orders[key]])
    assert len({tuple(order) for order in orders.values()}) == 3


def test_a_set_below_one_batch_is_one_batch(folder: Path) -> None:
    data = loaded(folder)
    assert data.steps(100) == 1
    ((view,),) = data.batches(0, batch_size=100)
    assert sorted(view.index.tolist()) == list(range(34))
    slices = [next(data.batches(0, batch_size=100, rank=rank, world=4))[0].index for rank in range(4)]
    assert [len(index) for index in slices] == [8] * 4
    assert len(torch.cat(slices).unique()) == 32


def test_start_skips_batches_without_changing_the_others(folder: Path) -> None:
    data = loaded(folder)
    whole = flat(data.batches(1, batch_size=8))
    for one, other in zip(whole[2:], flat(data.batches(1, batch_size=8, start=2)), strict=True):
        assert_equal(one, other)
    assert list(data.batches(1, batch_size=8, start=4)) == []


@pytest.mark.parametrize("augment", [PLAIN, FULL], ids=["plain", "full"])
def test_ranks_share_each_global_batch_in_contiguous_slices(folder: Path, augment: Augment) -> None:
    data = loaded(folder, augment)
    whole = flat(data.batches(0, batch_size=8))
    ranks = [flat(data.batches(0, batch_size=8, rank=rank, world=2)) for rank in range(2)]
    for one, first, second in zip(whole, *ranks, strict=True):
        joined = View(*(torch.cat([getattr(v, n) for v in (first, second)]) for n in ("x", "y", "index")), first.draw)
        assert_equal(one, joined)


def test_draws_count_on_and_come_again_where_views_are_bounded(folder: Path) -> None:
    demands = Demands(views=2)
    data = loaded(folder)
    assert [view.draw for view in next(data.batches(5, batch_size=4, demands=demands))] == [10, 11]
    bounded = loaded(folder, replace(PLAIN, views=3))
    assert [view.draw for view in next(bounded.batches(5, batch_size=4, demands=demands))] == [4, 5]
    index = torch.arange(34)
    assert not torch.equal(data.view(index, 10).x, data.view(index, 11).x)
    assert_equal(data.view(index, 4), bounded.view(index, 4))


def test_the_seed_of_the_configuration_draws_the_pixels(folder: Path) -> None:
    one, other = loaded(folder), loaded(folder)
    reseeded = replace(other, config=replace(other.config, seed=1))
    index = torch.arange(34)
    assert torch.equal(one.view(index, 0).x, other.view(index, 0).x)
    assert not torch.equal(one.view(index, 0).x, reseeded.view(index, 0).x)


@pytest.mark.parametrize(
    "augment", [Augment(crop=1, mixup=0.5), Augment(flip=True, cutmix=1.0)], ids=["mixup", "cutmix"]
)
def test_mixing_blends_a_sample_with_its_partner_as_augmented_for_itself(folder: Path, augment: Augment) -> None:
    data = loaded(folder, augment)
    unmixed = loaded(folder, replace(augment, mixup=0.0, cutmix=0.0))
    index = torch.arange(34)
    view, alone = data.view(index, 1), unmixed.view(index, 1).x
    assert view.y.shape == (34, 2)
    torch.testing.assert_close(view.y.sum(1), torch.ones(34))
    partners = []
    for i in range(34):
        fits = [
            j
            for j in range(34)
            if (view.x[i] - alone[i] - _share(view.x[i], alone[i], alone[j]) * (alone[j] - alone[i])).abs().max() < 1e-4
        ]
        partners.append(fits)
    mixed = [fits for fits in partners if len(fits) == 1]
    assert len(mixed) > 20  # the others keep almost all of themselves, so that any partner fits
    assert len({fits[0] for fits in mixed}) == len(mixed)  # a permutation
    for i, fits in enumerate(partners):
        if len(fits) == 1 and data.train.labels[i] != data.train.labels[fits[0]]:
            share = _share(view.x[i], alone[i], alone[fits[0]]).mean()
            assert abs(view.y[i, data.train.labels[fits[0]]] - share) < 0.02


def test_each_draw_has_other_partners(save_folder: Save) -> None:
    data = loaded(save_folder({"train": dict.fromkeys("abcdefghijklmnop", 3)}), Augment(mixup=1e6))
    index = torch.arange(len(data.train))
    companies = [(data.view(index, draw).y > 0.1).float() for draw in (0, 1)]  # mixup of a huge alpha halves
    assert not torch.equal(*companies)


def _share(x: torch.Tensor, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Of `other` in x: one share an image for mixup, 0 or 1 a pixel for CutMix; a pixel is (3,) wide."""
    gap = other - own
    shares = ((x - own) * gap).sum(0) / gap.square().sum(0).clamp(min=1e-9)
    cut = shares.round().clamp(0, 1)
    whole = ((x - own) * gap).sum() / gap.square().sum().clamp(min=1e-9)
    return cut if (cut - shares).abs().max() < 1e-3 else whole.expand_as(cut)


def test_hard_labels_refuse_mixing_before_the_first_batch(folder: Path) -> None:
    data = loaded(folder, FULL)
    assert data.facts.soft_labels
    with pytest.raises(InputError, match=r"data.augment: mixup or cutmix"):
        data.batches(0, batch_size=4, demands=Demands(hard_labels=True))


@pytest.mark.parametrize(("batch_size", "world"), [(0, 1), (-4, 1), (7, 2)])
def test_batches_that_ranks_cannot_share_are_refused(folder: Path, batch_size: int, world: int) -> None:
    with pytest.raises(InputError, match=f"batch_size: {batch_size}: must be a positive multiple"):
        loaded(folder).batches(0, batch_size=batch_size, world=world)


def test_more_ranks_than_images_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"data.train_size: 34: must be at least the 50 processes"):
        loaded(folder).batches(0, batch_size=50, world=50)


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_gives_each_image_once_in_order_as_it_is(folder: Path, world: int) -> None:
    data = loaded(folder, FULL)
    views = [view for rank in range(world) for view in data.evaluation("test", 4, rank, world)]
    assert torch.equal(torch.cat([view.index for view in views]), torch.arange(10))
    assert torch.equal(torch.cat([view.y for view in views]), data.test.labels)
    (pixels,) = data.test.read([torch.arange(10)])
    assert torch.equal(torch.cat([view.x for view in views]), pixels.float() / 255)
    assert {view.draw for view in views} == {-1}
    assert max(len(view.x) for view in views) <= 4


def test_a_rank_may_have_nothing_to_evaluate(folder: Path) -> None:
    assert list(loaded(folder).evaluation("val", rank=7, world=8)) == []


def test_the_fingerprint_follows_what_determines_the_pixels(folder: Path, noise: Callable) -> None:
    before = loaded(folder).fingerprint()
    assert loaded(folder, workers=1).fingerprint() == before
    assert load(DataConfig(source=str(folder), workers=0)).fingerprint() == before  # the default, said and unsaid
    changes: list[dict[str, Any]] = [
        {"augment": FULL},
        {"augment": replace(PLAIN, views=3)},
        {"seed": 1},
        {"image_size": 6},
        {"val_fraction": 0.3},
        {"train_size": 20},
    ]
    seen = {before} | {loaded(folder, **change).fingerprint() for change in changes}
    assert len(seen) == len(changes) + 1
    (folder / "train" / "cat" / "004.png").write_bytes(noise(500))
    assert loaded(folder).fingerprint() not in seen


def test_the_fingerprint_sees_a_change_between_its_samples(
    folder: Path, noise: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd.data.data._PROBE", 1)
    before = loaded(folder).fingerprint()
    (folder / "test" / "dog" / "004.png").write_bytes(noise(500, (8, 8), False))
    assert loaded(folder).fingerprint() != before


def test_pairs_are_of_one_class_and_of_two_samples(folder: Path) -> None:
    data, demands = loaded(folder), Demands(order="pairs")
    views = flat(data.batches(0, batch_size=8, demands=demands))
    assert [len(view.index) for view in views] == [8] * data.steps(8, demands) == [8] * 8
    firsts, partners = zip(*(view.index.chunk(2) for view in views), strict=True)
    assert len(torch.cat(firsts).unique()) == 32, "each sample is first once"
    assert torch.equal(data.train.labels[torch.cat(firsts)], data.train.labels[torch.cat(partners)])
    assert (torch.cat(firsts) != torch.cat(partners)).all()
    again = flat(data.batches(1, batch_size=8, demands=demands))
    pairs = [{(a, b) for v in vs for a, b in zip(*v.index.view(2, -1).tolist(), strict=True)} for vs in (views, again)]
    assert pairs[0] != pairs[1]


def test_batches_overlap_by_half(folder: Path) -> None:
    data, demands = loaded(folder), Demands(order="overlap")
    views = flat(data.batches(0, batch_size=8, demands=demands))
    assert len(views) == data.steps(8, demands) == 7
    for before, after in itertools.pairwise(views):
        assert torch.equal(before.index[4:], after.index[:4])
    assert_equal(views[2], next(data.batches(0, batch_size=8, demands=demands, start=2))[0])


@pytest.mark.parametrize("order", ["pairs", "overlap"])
def test_ranks_have_whole_pairs_and_their_own_overlap(folder: Path, order: Literal["pairs", "overlap"]) -> None:
    data, demands = loaded(folder), Demands(order=order)
    whole = flat(data.batches(0, batch_size=8, demands=demands))
    ranks = [flat(data.batches(0, batch_size=8, rank=rank, world=2, demands=demands)) for rank in range(2)]
    for one, first, second in zip(whole, *ranks, strict=True):
        halves = [view.index.chunk(2) for view in (first, second)]
        assert torch.equal(one.index, torch.cat([halves[0][0], halves[1][0], halves[0][1], halves[1][1]]))
    if order == "overlap":
        for views in ranks:
            assert all(torch.equal(a.index[2:], b.index[:2]) for a, b in itertools.pairwise(views))


@pytest.mark.parametrize("order", ["pairs", "overlap"])
@pytest.mark.parametrize("batch_size", [7, 1])
def test_halves_need_an_even_batch(folder: Path, order: Literal["pairs", "overlap"], batch_size: int) -> None:
    with pytest.raises(InputError, match=r"fit\.batch_size"):
        loaded(folder).batches(0, batch_size=batch_size, demands=Demands(order=order))


def test_the_last_of_several_views_may_be_strong(folder: Path) -> None:
    data = loaded(folder)
    weak, strong = next(data.batches(0, batch_size=8, demands=Demands(views=2, strong=True)))
    plain, other = next(data.batches(0, batch_size=8, demands=Demands(views=2)))
    assert_equal(weak, plain)
    assert not torch.equal(strong.x, other.x)
    assert_equal(strong, data.view(strong.index, strong.draw))  # so that stored answers are about these pixels
