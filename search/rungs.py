"""Rungs: where a training is cut short because others did better for less.

Successive halving as each candidate comes, without waiting for the others (ASHA: Li et al. 2020, A System for Massively
Parallel Hyperparameter Tuning, algorithm 2), ranked by how many rivals dominate a candidate (MOGA: Fonseca and Fleming
1993) for there are several goals. Optuna's own pruners know one goal only.
"""

from __future__ import annotations

from collections.abc import Sequence

from search.pareto import ACCURATE_AND_LIGHT, Point, dominates


def goes_on(point: Point, others: Sequence[Point], reduction: float, goals: Sequence[str] = ACCURATE_AND_LIGHT) -> bool:
    """Whether a candidate is trained beyond a rung: what none dominates is, and else the better 1/`reduction`.

    Args:
        point: its figures at the rung.
        others: those of all that came to this rung before.
    """
    rivals = [*others, point]
    rank = _dominators(point, rivals, goals)
    better = sum(_dominators(other, rivals, goals) < rank for other in others)
    return rank == 0 or better < len(rivals) // reduction


def _dominators(point: Point, rivals: Sequence[Point], goals: Sequence[str]) -> int:
    return sum(dominates(rival, point, goals) for rival in rivals)
