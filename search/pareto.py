"""Two goals, accuracy up and MACs down: who dominates, what is left, how much it covers, which one to take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from search.budget import Budget

Point = Mapping[str, Any]  # with "top1" in percent, "macs" and "params"


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is as good as `b` in both goals and better in one."""
    better = a["top1"] > b["top1"] or a["macs"] < b["macs"]
    return better and a["top1"] >= b["top1"] and a["macs"] <= b["macs"]


def front(points: Iterable[Point]) -> list[Point]:
    """The points that none dominates, by rising MACs (and so by rising accuracy); of equals the first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point["macs"], -point["top1"])):
        if not kept or point["top1"] > kept[-1]["top1"]:
            kept.append(point)
    return kept


def hypervolume(points: Iterable[Point], top1: float, macs: float) -> float:
    """The area (percent times MACs) that the points dominate up to a reference point that is worse in both goals."""
    area, floor = 0.0, top1
    for point in front(points):
        if point["macs"] < macs and point["top1"] > floor:
            area += (point["top1"] - floor) * (macs - point["macs"])
            floor = point["top1"]
    return area


def select(points: Sequence[Point], budget: Budget, within: float) -> Point:
    """The point to take: where the budget sets a limit the most accurate that keeps it (of equals the smallest), else
    the one of fewest MACs within `within` percentage points of the most accurate."""
    kept = [point for point in points if budget.keeps(point["params"], point["macs"])]
    best = max(point["top1"] for point in kept)
    slack = 0.0 if budget.limited else within
    return min((point for point in kept if point["top1"] >= best - slack), key=lambda point: point["macs"])
