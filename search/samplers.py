"""How candidates are proposed: Optuna's samplers by name, each question answered from what is finished alone."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from optuna import Study, samplers
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from kd.errors import InputError

QUESTION = "question"  # attribute of a trial: the how manieth it is, a repetition counting as what it repeats


class Grid(samplers.BruteForceSampler):
    """Every candidate of a space of steps once, in random order; then it repeats itself."""

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """Raises InputError where the space is continuous."""
        if isinstance(distribution, FloatDistribution) and distribution.step is None:
            raise InputError("search.sampler", "grid", f"the space must have steps, and {name} has none")
        return super().sample_independent(study, trial, name, distribution)

    def after_trial(self, *args: Any) -> None:
        """Not Optuna's, which stops a study that runs by itself."""


# name -> (seed, startup) -> sampler
SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, startup: samplers.TPESampler(n_startup_trials=startup, constant_liar=True, seed=seed),
    "nsga2": lambda seed, startup: samplers.NSGAIISampler(population_size=max(startup, 2), seed=seed),
    "nsga3": lambda seed, startup: samplers.NSGAIIISampler(population_size=max(startup, 2), seed=seed),
    "gp": lambda seed, startup: samplers.GPSampler(n_startup_trials=startup, seed=seed),
    "random": lambda seed, startup: samplers.RandomSampler(seed),
    "grid": lambda seed, startup: Grid(seed),
}


class Seeded(BaseSampler):
    """A fresh sampler for each trial, seeded by its question: what is proposed does not hang on what this process did.

    So a search that was stopped goes on as if it had not been.
    """

    def __init__(self, name: str, startup: int, seed: int) -> None:
        self.name, self.startup, self.seed = name, startup, seed
        self.inner: BaseSampler = samplers.RandomSampler(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.inner = SAMPLERS[self.name](derived(self.seed, question(study, trial)), self.startup)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.inner.after_trial(study, trial, state, values)


def question(study: Study, trial: FrozenTrial | Trial) -> int:
    """The how manieth question the proposal of `trial` answers; a repetition answers that of the trial it repeats."""
    if QUESTION in trial.user_attrs:
        return int(trial.user_attrs[QUESTION])
    before = (other.user_attrs for other in study.get_trials(deepcopy=False) if other.number < trial.number)
    return 1 + max((int(known[QUESTION]) for known in before if QUESTION in known), default=-1)


def derived(*parts: object) -> int:
    """A seed that is a function of these."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4])
