"""Search: which student to distil in full."""

from search.budget import Budget
from search.config import SearchConfig
from search.pareto import GOALS, dominates, front, hypervolume, select
from search.result import Result
from search.space import Candidate, Range, Space, any_of, at, compound, compressed, distilled, per_stage, uniform
from search.study import run

__all__ = [
    "GOALS",
    "Budget",
    "Candidate",
    "Range",
    "Result",
    "SearchConfig",
    "Space",
    "any_of",
    "at",
    "compound",
    "compressed",
    "distilled",
    "dominates",
    "front",
    "hypervolume",
    "per_stage",
    "run",
    "select",
    "uniform",
]
