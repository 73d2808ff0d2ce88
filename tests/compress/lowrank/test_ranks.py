from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from compress.lowrank.ranks import Choice, allocate, choices, front, sufficient


def energies(*shape: int, seed: int = 0) -> Tensor:
    """Of one or two modes, the strongest direction of each first."""
    decay = [torch.logspace(0, -3, size, dtype=torch.float64) for size in shape]
    noise = 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return decay[0] if len(shape) == 1 else decay[0][:, None] * decay[1][None] * noise


def pair(outer: int, inner: int) -> int:
    return 8 * inner + 9 * outer * inner + 6 * outer


def ways(whole, energy, cost, least=1):
    return front(whole, choices(energy, lambda ranks: cost(*ranks), least))


def total(chosen: list[Choice]) -> int:
    return sum(choice.cost for choice in chosen)


def lost(chosen: list[Choice]) -> float:
    return sum(choice.lost for choice in chosen)


def test_a_layer_as_it_is_comes_first_and_every_other_choice_is_cheaper_and_loses_more():
    found = ways(9 * 6 * 8, energies(6, 8), pair)

    assert found[0] == Choice((), 432, 0.0)
    assert len(found) > 3
    for dearer, cheaper in pairwise(found):
        assert cheaper.cost < dearer.cost
        assert cheaper.lost > dearer.lost


def test_loss_is_the_share_of_energy_beyond_the_ranks():
    energy = energies(6, 8)
    for choice in ways(432, energy, pair)[1:]:
        outer, inner = choice.ranks
        kept = sum(float(energy[i, j]) for i in range(outer) for j in range(inner))
        assert choice.lost == pytest.approx(1 - kept / float(energy.sum()), abs=1e-9)
        assert choice.cost == pair(outer, inner)


def test_the_second_mode_is_cut_where_it_loses_as_much_as_the_first():
    energy = energies(12, 8)
    rows, columns = energy.sum(1) / energy.sum(), energy.sum(0) / energy.sum()
    for choice in ways(10**6, energy, pair)[1:]:
        outer, inner = choice.ranks
        limit = float(rows[outer:].sum())
        assert float(columns[inner:].sum()) <= limit + 1e-9
        assert inner == 1 or float(columns[inner - 1 :].sum()) > limit


def test_a_single_mode_offers_every_rank_that_is_cheaper():
    found = ways(100, energies(10), lambda rank: 18 * rank)

    assert [choice.ranks for choice in found] == [(), (5,), (4,), (3,), (2,), (1,)]


@pytest.mark.parametrize(("least", "expected"), [(3, {3, 4, 5}), (5, {5}), (6, set()), (100, set())])
def test_no_rank_is_below_the_least(least, expected):
    found = ways(100, energies(10), lambda rank: 18 * rank, least)

    assert {choice.ranks[0] for choice in found[1:]} == expected


def test_a_least_rank_above_what_a_mode_has_means_all_of_it():
    assert [choice.ranks for choice in ways(10**6, energies(3, 8), pair, 5)] == [(), (3, 8)]


def test_a_layer_of_zeros_goes_to_the_least_rank_for_nothing():
    cheapest = ways(432, torch.zeros(6, 8), pair)[-1]

    assert cheapest.ranks == (1, 1)
    assert cheapest.lost == 0


def test_ranks_that_keep_nothing_more_are_not_offered():
    energy = energies(10)
    energy[3:] = 0

    assert [choice.ranks for choice in ways(1000, energy, lambda rank: 18 * rank)] == [(), (3,), (2,), (1,)]


def layers(count: int) -> list[list[Choice]]:
    return [
        ways(100 * (n + 1), energies(10, seed=n) ** (1 + n / 2), lambda r, n=n: 18 * r * (n + 1)) for n in range(count)
    ]


@pytest.mark.parametrize("share", [0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.99])
def test_the_limit_holds_and_nothing_better_fits_in_what_is_left(share):
    options = layers(4)
    limit = int(share * sum(option[0].cost for option in options))
    chosen = allocate(options, limit)

    assert total(chosen) <= limit
    for place, option in enumerate(options):
        for other in option:
            assert other.lost >= chosen[place].lost or total(chosen) - chosen[place].cost + other.cost > limit


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_the_loss_is_close_to_the_least_that_any_combination_has(share):
    options = layers(3)
    limit = int(share * sum(option[0].cost for option in options))
    best = min(lost(list(combination)) for combination in product(*options) if total(list(combination)) <= limit)

    assert lost(allocate(options, limit)) <= 1.25 * best + 1e-3


def test_where_the_limit_is_out_of_reach_everything_is_cheapest():
    options = layers(3)

    assert allocate(options, 10) == allocate(options, -5) == [option[-1] for option in options]


def test_one_layer_that_is_nearly_all_comes_close_to_the_limit():
    """A single price finds the corners of its convex hull only."""
    (option,) = [ways(1000, energies(40).sqrt(), lambda rank: 40 * rank)]
    for limit in (250, 500, 950):
        (choice,) = allocate([option], limit)
        assert limit - 40 < choice.cost <= limit


def test_what_a_price_leaves_over_is_spent_where_it_gains_most_for_its_cost():
    """Every second choice lies above the line between the others, so that no price finds it."""
    steps = [(300, 0.05), (150, 0.03), (30, 0.001)]
    options = [
        [Choice((), 1000, 0.0), Choice((2,), 100 + cost, 0.5 - gain), Choice((1,), 100, 0.5)] for cost, gain in steps
    ]

    assert [choice.ranks for choice in allocate(options, 600)] == [(1,), (2,), (2,)]
    assert [choice.ranks for choice in allocate(options, 340)] == [(1,), (1,), (2,)]


def test_layers_without_a_choice_stay():
    assert allocate([[Choice((), 50, 0.0)], layers(1)[0]], 100)[0] == Choice((), 50, 0.0)
    assert allocate([], 10) == []


def test_choices_of_several_methods_are_one_front():
    one = [Choice((4,), 80, 0.1, "one"), Choice((2,), 40, 0.3, "one"), Choice((1,), 20, 0.6, "one")]
    other = [Choice((9,), 110, 0.0, "other"), Choice((6,), 60, 0.1, "other"), Choice((3,), 30, 0.4, "other")]

    assert front(100, one + other) == [Choice((), 100, 0.0), other[1], one[1], other[2], one[2]]


def test_harms_take_the_place_of_losses():
    layers = [[Choice((), 100, 0.0), Choice((1,), 50, 0.1)], [Choice((), 100, 0.0), Choice((1,), 50, 0.9)]]

    assert [choice.ranks for choice in allocate(layers, 150)] == [(1,), ()]
    assert [choice.ranks for choice in allocate(layers, 150, [[0.0, 2.0], [0.0, 1.0]])] == [(), (1,)]


def test_the_cheapest_that_keeps_enough_is_sufficient():
    options = [Choice((), 100, 0.0), Choice((4,), 80, 0.05, "a"), Choice((3,), 60, 0.2, "b"), Choice((1,), 9, 0.5, "a")]

    assert [sufficient(options, kept).ranks for kept in (1.0, 0.96, 0.95, 0.8, 0.1)] == [(), (), (4,), (3,), (1,)]
    assert sufficient(options, 0.1, {"a": (2,), "b": (3,)}).ranks == (3,)
    assert sufficient(options, 0.1, {"a": (2,), "b": (4,)}).ranks == (4,)
    assert sufficient(options, 0.1, {"a": (5,), "b": (4,)}).ranks == ()
