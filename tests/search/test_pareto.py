from __future__ import annotations

import random

import pytest

from kd.errors import InputError
from search import Budget, dominates, front, hypervolume, select


def point(top1: float, macs: float, params: int = 10) -> dict[str, float]:
    return {"top1": top1, "macs": macs, "params": params}


def cloud(seed: int, size: int = 30) -> list[dict[str, float]]:
    draw = random.Random(seed)
    return [point(draw.randrange(20), draw.randrange(1, 20)) for _ in range(size)]


def test_domination_needs_one_goal_better_and_none_worse() -> None:
    assert dominates(point(2, 1), point(1, 1))
    assert dominates(point(2, 1), point(2, 2))
    assert not dominates(point(2, 1), point(2, 1))
    assert not dominates(point(2, 2), point(1, 1))


@pytest.mark.parametrize("seed", range(5))
def test_front_is_what_nobody_dominates_by_rising_macs(seed: int) -> None:
    points = cloud(seed)
    free = {(a["top1"], a["macs"]) for a in points if not any(dominates(b, a) for b in points)}
    assert [(p["top1"], p["macs"]) for p in front(points)] == sorted(free, key=lambda pair: pair[1])


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_counts_the_dominated_unit_squares(seed: int) -> None:
    points = cloud(seed)
    squares = sum(
        any(p["top1"] >= 2 + i + 1 and p["macs"] <= 15 - j - 1 for p in points) for i in range(18) for j in range(15)
    )
    assert hypervolume(points, {"top1": 2, "macs": 15}) == squares


def test_select_takes_the_smallest_near_the_best_without_a_budget() -> None:
    points = [point(90, 9), point(89.2, 5), point(89, 4), point(88.9, 1)]
    assert select(points, Budget(), within=1.0) == points[2]
    assert select(points, Budget(), within=0.0) == points[0]


def test_select_takes_the_most_accurate_within_a_budget() -> None:
    points = [point(90, 9), point(89.5, 5, params=99), point(89.5, 4, params=99), point(89, 3, params=5)]
    assert select(points, Budget(macs=5), within=1.0) == points[2]
    assert select(points, Budget(params=5), within=1.0) == points[3]


def test_excess_is_relative_to_the_limit() -> None:
    budget = Budget(params=100, macs=50)
    assert budget.excess({"params": 150, "macs": 50}) == {"params": 0.5, "macs": 0.0}
    assert not budget.keeps({"params": 150, "macs": 50})
    assert budget.keeps({"params": 100, "macs": 50})
    assert Budget().excess({"params": 1, "macs": 1}) == {}


def test_of_a_limit_and_a_share_the_tighter_counts() -> None:
    budget = Budget(macs=50, macs_share=0.25, params_share=0.5)
    assert budget.absolute(params=10, macs=100) == Budget(params=5, macs=25)
    assert budget.absolute(params=10, macs=1000) == Budget(params=5, macs=50)


def test_a_share_of_next_to_nothing_is_a_limit_that_none_keeps() -> None:
    budget = Budget(macs_share=1e-9).absolute(params=10, macs=1000)
    assert not budget.keeps({"params": 10, "macs": 2})


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["params", "macs", "params_share", "macs_share"])
def test_a_limit_of_nothing_is_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"search\.budget\.{field}: {value}: must be a number above 0"):
        Budget(**{field: value})
