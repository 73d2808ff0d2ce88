from __future__ import annotations

import random

import pytest

from search.pareto import dominates
from search.rungs import goes_on


def point(top1: float, macs: float) -> dict[str, float]:
    return {"top1": top1, "macs": macs}


def test_the_first_at_a_rung_goes_on() -> None:
    assert goes_on(point(1, 9), [], 2)


def test_the_lesser_half_is_stopped_and_what_none_dominates_never() -> None:
    others = [point(80, 5), point(70, 6), point(60, 7)]
    assert goes_on(point(85, 9), others, 2)  # the best, at whatever cost
    assert goes_on(point(10, 1), others, 2)  # the cheapest, however bad
    assert goes_on(point(75, 5.5), others, 2)  # second of four
    assert not goes_on(point(65, 6.5), others, 2)  # third of four
    assert not goes_on(point(50, 8), others, 2)


@pytest.mark.parametrize("reduction", [1.5, 2.0, 3.0, 4.0])
def test_of_a_chain_the_better_share_goes_on(reduction: float) -> None:
    chain = [point(90 - i, 1 + i) for i in range(12)]  # each dominates all that follow
    kept = [goes_on(p, [q for q in chain if q is not p], reduction) for p in chain]
    assert kept == [True] * int(12 // reduction) + [False] * (12 - int(12 // reduction))


@pytest.mark.parametrize("seed", range(3))
def test_the_front_always_goes_on_and_no_one_who_is_passed_by_a_worse(seed: int) -> None:
    draw = random.Random(seed)
    points = [point(draw.randrange(30), draw.randrange(30)) for _ in range(30)]
    kept = [p for p in points if goes_on(p, [q for q in points if q is not p], 3)]
    assert kept
    assert all(p in kept for p in points if not any(dominates(q, p) for q in points))
    ranks = [sum(dominates(q, p) for q in points) for p in points]
    worst = max(rank for rank, p in zip(ranks, points, strict=True) if p in kept)
    assert all(rank >= worst for rank, p in zip(ranks, points, strict=True) if p not in kept)


def test_three_goals() -> None:
    goals = ("top1", "macs", "latency_ms")
    other = {"top1": 80, "macs": 5, "latency_ms": 5}
    assert goes_on({"top1": 70, "macs": 6, "latency_ms": 4}, [other], 2, goals)
    assert not goes_on({"top1": 70, "macs": 6, "latency_ms": 6}, [other] * 3, 2, goals)
