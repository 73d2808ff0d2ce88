"""Search: which student to distil in full."""

from search.budget import Budget
from search.config import SearchConfig
from search.pareto import dominates, front, hypervolume, select
from search.space import Space, uniform
from search.study import Result, run

__all__ = ["Budget", "Result", "SearchConfig", "Space", "dominates", "front", "hypervolume", "run", "select", "uniform"]
