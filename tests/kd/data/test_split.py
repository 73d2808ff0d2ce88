from __future__ import annotations

import numpy as np
import pytest
import torch

from kd.data.files import Listed
from kd.data.images import Form, Images
from kd.data.split import InMemory, Streamed, spread, stratified
from kd.errors import InputError


def listed(count: int = 30) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 4, 5), dtype=np.uint8)
    table = Listed(list(pixels), [f"image {i}" for i in range(count)], torch.arange(count) % 3)
    return Images(table, torch.arange(count).flip(0)[: count - 2], Form(1, (4, 5), False, "image 0"))


BATCHES = [torch.tensor([3, 1, 2]), torch.tensor([0]), torch.tensor([27, 27]), torch.arange(5)]


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_stream_give_equal_bytes_in_the_order_asked_for(workers: int) -> None:
    images = listed()
    memory, stream = InMemory(images, workers), Streamed(images, workers)
    assert torch.equal(memory.labels, stream.labels)
    assert len(memory) == len(stream) == 28
    expected = [torch.from_numpy(np.stack([images.table.fetch([29 - int(i)])[0] for i in b]))[:, None] for b in BATCHES]
    for split in (memory, stream):
        for got, wanted in zip(split.read(BATCHES), expected, strict=True):
            assert got.dtype == torch.uint8
            assert torch.equal(got, wanted)


def test_workers_decode_a_large_split_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = InMemory(listed(), 0).pixels
    monkeypatch.setattr("kd.data.split._WORTH_WORKERS", 0)
    monkeypatch.setattr("kd.data.split._CHUNK", 100)
    assert torch.equal(InMemory(listed(), 2).pixels, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_crosses_the_border_of_a_worker_whole(workers: int) -> None:
    images = listed()
    images.table.items[20] = b"no image"  # type: ignore[attr-defined]
    with pytest.raises(InputError) as caught:
        list(Streamed(images, workers).read([torch.arange(20)]))
    assert (caught.value.field, caught.value.value) == ("data.source", "image 20")


def test_reading_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    list(Streamed(listed(), 0).read(BATCHES))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("sizes", "count", "quota"),
    [
        ([50, 30, 20], 10, [5, 3, 2]),
        ([100, 1, 1], 5, [3, 1, 1]),
        ([3, 3, 3], 4, [2, 1, 1]),
        ([10, 0, 10], 4, [2, 0, 2]),
        ([4, 6], 10, [4, 6]),
        ([97, 2, 1], 3, [1, 1, 1]),
    ],
)
def test_strata_are_proportional_and_none_is_empty(sizes: list[int], count: int, quota: list[int]) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    chosen = stratified(labels, count, 0)
    assert labels[chosen].bincount(minlength=len(sizes)).tolist() == quota


def test_the_key_draws_the_samples() -> None:
    labels = torch.arange(1000) % 4
    first, again, other = (stratified(labels, 200, key) for key in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 20 < (first & other).sum() < 65  # a fifth of a fifth, by chance
    assert abs(first.nonzero().double().mean() - 499.5) < 60  # from everywhere


def test_spread() -> None:
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 4).tolist() == [0, 1, 2]
