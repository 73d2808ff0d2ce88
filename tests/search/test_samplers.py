from __future__ import annotations

import warnings

import optuna
import pytest
from optuna.trial import TrialState

from kd.errors import InputError
from search.samplers import QUESTION, SAMPLERS, Seeded, derived, question


def study(sampler: str, seed: int = 0) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=["maximize", "minimize"], sampler=Seeded(sampler, 4, seed))


def asked(made: optuna.Study, step: float | None = 0.05) -> tuple[float, float]:
    trial = made.ask()
    trial.set_user_attr(QUESTION, question(made, trial))
    _ = trial.relative_params
    x, y = trial.suggest_float("x", 0, 1, step=step), trial.suggest_float("y", 0, 1, step=step)
    limit = x * y - 0.3
    trial.set_constraint("macs", limit)
    made.tell(trial, [0.0 if limit > 0 else x + y**0.5, x * y])
    return x, y


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_proposed_is_a_function_of_the_seed_and_of_what_is_finished(sampler: str) -> None:
    first, second = study(sampler), study(sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none is experimental to our users
        whole = [asked(first) for _ in range(10)]
    cut = [asked(second) for _ in range(5)]
    second.sampler = Seeded(sampler, 4, 0)  # a new process
    assert cut + [asked(second) for _ in range(5)] == whole
    assert [asked(study(sampler, seed=1)) for _ in range(1)] != whole[:1]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_infeasible_candidates_are_learnt_to_be_avoided(sampler: str) -> None:
    """A third of the square is infeasible; the random ones stay at that."""

    def share(name: str) -> float:
        made = study(name)
        drawn = [asked(made, None) for _ in range(24)]
        return sum(x * y > 0.3 for x, y in drawn[8:]) / 16

    assert share(sampler) < share("random")


def test_a_grid_takes_every_candidate_once() -> None:
    made = study("grid")
    assert len({asked(made, 0.5) for _ in range(9)}) == 9
    assert asked(made, 0.5)  # and then again


def test_a_grid_of_a_continuous_space_is_refused() -> None:
    with pytest.raises(InputError, match=r"search\.sampler: grid: .* and x has none"):
        asked(study("grid"), None)


def test_a_trial_that_is_put_back_asks_the_question_of_the_one_that_died() -> None:
    made = study("random")
    first = made.ask()
    first.set_user_attr(QUESTION, question(made, first))
    x = first.suggest_float("x", 0, 1)
    made.enqueue_trial({}, user_attrs={QUESTION: question(made, first)})
    made.tell(first.number, state=TrialState.FAIL)
    again = made.ask()
    assert again.suggest_float("x", 0, 1) == x
    following = made.ask()
    assert following.suggest_float("x", 0, 1) != x
    assert [question(made, trial) for trial in (first, again, following)] == [0, 0, 1]


def test_derived_seeds_differ_and_stay() -> None:
    assert derived(0, "a") == derived(0, "a")
    assert len({derived(0, "a"), derived(1, "a"), derived(0, "b")}) == 3
