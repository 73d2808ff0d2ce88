from __future__ import annotations

import pytest
import torch

from kd.data.counter import Stream, bits, permutation, uniform

MASK = 2**64 - 1


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def naive_bits(*key: int) -> int:
    """In unbounded integers, so that neither signs nor overflow can hide a slip."""
    state = 0
    for part in key:
        state = mix((state + part + 0x9E3779B97F4A7C15) & MASK)
    return state


def test_bits_are_splitmix64_chained_over_the_key() -> None:
    index = torch.tensor([0, 1, 7, 49_999])
    for seed, draw in ((0, 0), (3, -1), (-5, 12), (2**63 + 11, 2**40)):
        expected = [naive_bits(seed, draw, i) for i in index.tolist()]
        assert [value & MASK for value in bits(seed, draw, index).tolist()] == expected


def test_the_first_number_of_splitmix64_is_the_published_one() -> None:
    assert bits(0).item() & MASK == 0xE220A8397B1DCDAF


def test_uniform_takes_the_top_24_bits() -> None:
    numbers = uniform(3, 5, torch.tensor([2, 9]))
    expected = [[(naive_bits(5, i, k) >> 40) / 2**24 for k in range(3)] for i in (2, 9)]
    assert numbers.tolist() == expected


def test_the_largest_number_never_rounds_up_to_a_position_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd.data.counter.bits", lambda *_: torch.full((1, 1), -1))
    sizes = torch.arange(1, 5000)
    assert torch.equal((uniform(1, torch.tensor([0]))[0] * sizes).long(), sizes - 1)


def test_uniform_is_uniform_and_its_columns_are_unrelated() -> None:
    numbers = uniform(4, 0, Stream.CROP, 0, torch.arange(50_000)).double()
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    torch.testing.assert_close(numbers.mean(0), torch.full((4,), 0.5).double(), atol=0.005, rtol=0)
    torch.testing.assert_close(numbers.var(0), torch.full((4,), 1 / 12).double(), atol=0.002, rtol=0)
    relation = torch.corrcoef(torch.cat([numbers.T, numbers[:, :1].roll(1, 0).T]))
    assert (relation - torch.eye(5)).abs().max() < 0.02


def test_permutations_hold_each_position_once_and_depend_on_the_whole_key() -> None:
    keys = [(0, 0), (0, 1), (1, 0)]
    orders = [permutation(1000, *key) for key in keys]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(orders[0], permutation(1000, 0, 0))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (orders[one] == orders[other]).float().mean() < 0.01
