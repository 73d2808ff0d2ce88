"""What a search found: its trials, their front, and the one to go on with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kd.console import say
from kd.errors import DivergedError, InputError
from search.budget import Budget
from search.config import SearchConfig
from search.pareto import Point, front, select
from search.zero_cost import rank_correlation
from students import Blueprint

TRIED = ("trained", "stopped")  # the states of those that were trained
Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        trials: a dict for each finished trial: number, suggested (what the space drew), state ("trained", "stopped" at
            a rung, "repeated": what an earlier trial was, "infeasible": beyond the budget, "refused": cannot be built
            or trained, "diverged"), blueprint, width, depth, params, macs, where asked for file_bytes and latency_ms,
            top1 on validation in percent, epochs and seconds (None where not trained), rungs (top1 by epoch), zero_cost
            (scores by name) and the keys net (of the network) and key (of all that was done with it).
        front: those trained trials that no other dominates, by rising cost.
        chosen: the one of them to go on with.
    """

    trials: list[Record]
    front: list[Point]
    chosen: Point

    def rank_correlation(self) -> dict[str, dict[str, float | None]]:
        """Spearman's and Kendall's, of each zero-cost score, of params and of MACs with the top1 of those that were
        trained to the end; None where there is none."""
        points = [trial for trial in self.trials if trial["state"] == "trained"]
        told = {name: [point[name] for point in points] for name in ("params", "macs")}
        told |= {name: [p["zero_cost"][name] for p in points] for name in points[0]["zero_cost"]}
        top1 = [point["top1"] for point in points]
        numbers = {name: [math.nan if value is None else value for value in values] for name, values in told.items()}
        found = {name: rank_correlation(values, top1)._asdict() for name, values in numbers.items()}
        return {name: {k: None if math.isnan(v) else v for k, v in ranks.items()} for name, ranks in found.items()}

    @property
    def blueprint(self) -> Blueprint:
        """Of the chosen student."""
        return Blueprint.from_json(self.chosen["blueprint"])


def conclude(records: list[Record], config: SearchConfig, budget: Budget) -> Result:
    """The result of these trials.

    Raises:
        InputError: no candidate keeps the budget; it names the nearest.
        DivergedError: none could be trained.
    """
    points = [record for record in records if record["state"] == "trained"]
    kept = [point for point in points if budget.keeps(point)]
    if not points and count(records, "diverged"):
        raise DivergedError("no candidate of the search could be trained: lower search.fit.lr")
    if not kept:
        sized = [record for record in records if "params" in record]
        if not sized:
            raise InputError("search.space", records[0]["suggested"], records[0]["why"])
        least = min(sized, key=lambda record: sum(max(v, 0) for v in budget.excess(record).values()))
        found = f"the nearest of {len(records)} candidates has " + ", ".join(
            f"{name} {least[name]}" for name in budget.limits if least.get(name) is not None
        )
        limits = ", ".join(f"{name} {limit}" for name, limit in budget.limits.items())
        raise InputError("search.budget", limits, f"no candidate keeps it: {found}")
    if config.epochs is None and count(records, *TRIED) < config.trials:
        say(f"search: the space offered {count(records, *TRIED)} different networks in {len(records)} proposals")
    return Result(records, front(kept, config.goals), select(kept, budget, config.within, config.cost))


def count(records: list[Record], *states: str) -> int:
    return sum(record["state"] in states for record in records)


def words(suggested: Record) -> str:
    """What the space drew."""
    return " ".join(
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in suggested.items()
    )
