"""How students are searched: the settings, and the samplers that they name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import optuna
from optuna.samplers import BaseSampler

from kd.errors import InputError
from kd.fit import Fit
from search.budget import Budget
from search.space import Range

# name -> (seed, startup) -> sampler
SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, startup: optuna.samplers.TPESampler(n_startup_trials=startup, constant_liar=False, seed=seed),
    "nsga2": lambda seed, startup: optuna.samplers.NSGAIISampler(population_size=max(startup, 2), seed=seed),
    "random": lambda seed, startup: optuna.samplers.RandomSampler(seed),
}


@dataclass(frozen=True)
class SearchConfig:
    """How students are searched.

    Attributes:
        trials: candidates to train, each another network.
        name: family of the students.
        width, depth: ranges of the two factors, lowest and highest.
        fit: the short training of a candidate.
        budget: what a candidate may cost; one that costs more is not trained.
        within: without a budget the smallest candidate within so many points of the best is chosen.
        sampler: "tpe", "nsga2" or "random".
        startup: random candidates before "tpe" learns from what is finished; the population of "nsga2".
        seed: of the proposals and of the candidates' weights.
    """

    trials: int = 12
    name: str = "cifar_resnet20"
    width: Range = (0.25, 1.0)
    depth: Range = (0.34, 1.0)
    fit: Fit = field(default_factory=lambda: Fit(epochs=3))
    budget: Budget = field(default_factory=Budget)
    within: float = 1.0
    sampler: str = "tpe"
    startup: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "startup"):
            if getattr(self, name) <= 0:
                raise InputError(f"search.{name}", getattr(self, name), "must be above 0")
        for name in ("width", "depth"):
            low, high = getattr(self, name)
            if not 0 < low <= high < float("inf"):
                raise InputError(
                    f"search.{name}", (low, high), "must be a lowest and a highest factor, above 0, in order"
                )
        if not self.within >= 0:
            raise InputError("search.within", self.within, "must be 0 or above")
        if self.sampler not in SAMPLERS:
            raise InputError("search.sampler", self.sampler, f"unknown; known: {', '.join(SAMPLERS)}")
