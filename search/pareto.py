"""Several goals at once: who dominates, what is left, how much it covers, which one to take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from search.budget import Budget

GOALS = ("top1", "params", "macs", "file_bytes", "latency_ms")
"""The figures that a search can be about: accuracy, percent, is raised; costs are lowered."""
ACCURATE_AND_LIGHT = ("top1", "macs")

Point = Mapping[str, Any]  # a figure for each goal


def dominates(a: Point, b: Point, goals: Sequence[str] = ACCURATE_AND_LIGHT) -> bool:
    """Whether `a` is as good as `b` in all goals and better in one."""
    ours, theirs = _lowered(a, goals), _lowered(b, goals)
    return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))


def front(points: Iterable[Point], goals: Sequence[str] = ACCURATE_AND_LIGHT) -> list[Point]:
    """The points that none dominates, by rising cost (the last goal first); of equals the first."""
    first: dict[tuple[float, ...], Point] = {}
    for point in points:
        first.setdefault(_lowered(point, goals), point)
    kept = [point for point in first.values() if not any(dominates(other, point, goals) for other in first.values())]
    return sorted(kept, key=lambda point: _lowered(point, goals)[::-1])


def hypervolume(points: Iterable[Point], reference: Point, goals: Sequence[str] = ACCURATE_AND_LIGHT) -> float:
    """The volume that the points dominate up to a reference point that is worse in all goals.

    Its unit is the product of those of the goals (percent times MACs). Zitzler and Thiele 1998; computed slice by slice
    along the last goal, exact, for the few points of a front.
    """
    corner = _lowered(reference, goals)
    inside = {_lowered(point, goals) for point in points}
    return _volume([p for p in inside if all(x < y for x, y in zip(p, corner, strict=True))], corner)


def share(points: Iterable[Point], reference: Point, goals: Sequence[str] = ACCURATE_AND_LIGHT) -> float:
    """The hypervolume as a share of the box from the reference point to 100 % at no cost."""
    ideal = {goal: 100 * (goal == "top1") for goal in goals}
    return hypervolume(points, reference, goals) / hypervolume([ideal], reference, goals)


def _volume(points: list[tuple[float, ...]], corner: tuple[float, ...]) -> float:
    if not corner:
        return float(bool(points))
    volume, *_, edge = 0.0, *corner
    for depth in sorted({point[-1] for point in points}, reverse=True):
        slice_ = [point[:-1] for point in points if point[-1] <= depth]
        volume += (edge - depth) * _volume(slice_, corner[:-1])
        edge = depth
    return volume


def _lowered(point: Point, goals: Sequence[str]) -> tuple[float, ...]:
    """The goals as numbers of which less is better."""
    return tuple(-point[goal] if goal == "top1" else point[goal] for goal in goals)


def select(points: Sequence[Point], budget: Budget, within: float, cost: str = "macs") -> Point:
    """The point to take: where the budget sets a limit the most accurate that keeps it (of equals the smallest), else
    the one of the least `cost` within `within` percentage points of the most accurate."""
    kept = [point for point in points if budget.keeps(point)]
    best = max(point["top1"] for point in kept)
    slack = 0.0 if budget.limits else within
    return min((point for point in kept if point["top1"] >= best - slack), key=lambda point: point[cost])
