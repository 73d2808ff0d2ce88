"""How students are searched: the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from kd.errors import InputError
from kd.fit import Fit
from search.budget import Budget
from search.pareto import ACCURATE_AND_LIGHT, GOALS
from search.samplers import SAMPLERS
from search.zero_cost import SCORES


@dataclass(frozen=True)
class SearchConfig:
    """How candidates are proposed, trained and judged.

    Attributes:
        trials: candidates to train, each another network or otherwise taught.
        epochs: the search also ends when so many were trained in all, the last candidate to its end; None: when the
            trials are done.
        fit: the short training of a candidate.
        goals: what is searched for: top1 on validation, which is raised, and of params, macs, file_bytes and latency_ms
            of the deployed file those that are lowered. Without top1 or with top1 alone there is one best, no front.
        budget: what a candidate may cost; one that is known to cost more is not trained.
        within: without a budget the candidate of the least cost (the first among the goals) within so many points of
            the best is chosen.
        sampler: how candidates are proposed: see `search.samplers.SAMPLERS`.
        startup: random candidates before a sampler learns from what is finished; the population of "nsga2", "nsga3".
        rungs: epochs at which a candidate is stopped unless it is among the better; see `search.rungs`. For the sampler
            it then counts by what it had reached.
        reduction: the better 1/`reduction` go on.
        zero_cost: scores of the untrained candidate to note, of `search.zero_cost.SCORES`.
        retries: how often a candidate is tried again whose process died, without a new checkpoint in between.
        storage: URL of a data base for the study, for a cluster; None: a file in the folder. The folder itself must be
            shared by all processes either way.
        seed: of the proposals and of the candidates' weights.
    """

    trials: int = 12
    epochs: int | None = None
    fit: Fit = field(default_factory=lambda: Fit(epochs=3))
    goals: tuple[str, ...] = ACCURATE_AND_LIGHT
    budget: Budget = field(default_factory=Budget)
    within: float = 1.0
    sampler: str = "tpe"
    startup: int = 6
    rungs: tuple[int, ...] = ()
    reduction: float = 2.0
    zero_cost: tuple[str, ...] = ()
    retries: int = 3
    storage: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "startup", "epochs"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"search.{name}", value, "must be above 0")
        if not self.within >= 0:
            raise InputError("search.within", self.within, "must be 0 or above")
        if self.retries < 0:
            raise InputError("search.retries", self.retries, "must be 0 or above")
        if self.sampler not in SAMPLERS:
            raise InputError("search.sampler", self.sampler, f"unknown; known: {', '.join(SAMPLERS)}")
        if not self.goals or set(self.goals) - set(GOALS) or len(set(self.goals)) < len(self.goals):
            raise InputError("search.goals", list(self.goals), f"must be different ones of {', '.join(GOALS)}")
        if set(self.zero_cost) - set(SCORES):
            raise InputError("search.zero_cost", list(self.zero_cost), f"must be of {', '.join(SCORES)}")
        if not 1 < self.reduction < float("inf"):
            raise InputError("search.reduction", self.reduction, "must be above 1")
        if any(not 0 < rung < self.fit.epochs for rung in self.rungs) or sorted(set(self.rungs)) != list(self.rungs):
            allowed = f"must be rising epochs, above 0 and below search.fit.epochs ({self.fit.epochs})"
            raise InputError("search.rungs", list(self.rungs), allowed)

    @property
    def figures(self) -> set[str]:
        """What must be known of a candidate."""
        return {*self.goals, *self.budget.limits}

    @property
    def cost(self) -> str:
        """By which the smallest is told."""
        return next((goal for goal in self.goals if goal != "top1"), "macs")
