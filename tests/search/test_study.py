from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optuna.trial import BaseTrial

import kd.data
import students
from kd.data import Augment, DataConfig
from kd.errors import DivergedError, InputError
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import KD
from search import Budget, Candidate, Result, SearchConfig, judge, run, uniform
from students import Blueprint
from teachers import Cached, Ensemble, Teacher

BASE = Blueprint("cifar_resnet20", num_classes=10, in_chans=1, image_size=8)
SPACE = uniform(BASE)
CONFIG = SearchConfig(trials=6, startup=3, fit=Fit(epochs=2, batch_size=64, trackers=()), seed=3)


def objective() -> Objective:
    return Objective({"kd": Term(KD())})


@pytest.fixture(scope="module")
def data() -> kd.data.Data:
    return kd.data.load(DataConfig(train_size=128, augment=Augment(crop=1, views=2)))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(BASE.build())


class FakeFit:
    """Trains nothing: larger is better, by a figure without ties. May die in its n-th training."""

    def __init__(self, dies_at: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.folders: list[str] = []
        self.seeds: list[int] = []
        self.weights: list[float] = []
        self.dies_at, self.error = dies_at, error

    def __call__(self, regime: Any, data: Any, config: Fit, folder: Path, label: str, stop: Any) -> Any:
        self.folders.append(folder.name)
        self.seeds.append(config.seed)
        self.weights.append(next(regime.student.parameters()).sum().item())
        if len(self.folders) == self.dies_at:
            raise self.error
        params = sum(parameter.numel() for parameter in regime.student.parameters())
        top1 = 90 - 1e5 / (params + 5e3)
        return SimpleNamespace(best_top1=top1, best_name="student", epochs=[{}, {}], seconds=0.5, stopped=False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeFit]:
    def install(*args: Any, **kwargs: Any) -> FakeFit:
        made = FakeFit(*args, **kwargs)
        monkeypatch.setattr(judge, "fit", made)
        return made

    return install


def test_trains_as_many_networks_as_asked_each_once(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fit = fake()
    result = run(SPACE, data, teacher, replace(CONFIG, trials=10), tmp_path, objective)
    trained = [trial for trial in result.trials if trial["state"] == "trained"]
    assert len(trained) == len(fit.folders) == len(set(fit.folders)) == 10
    assert len({trial["macs"] for trial in trained}) == len(set(fit.seeds)) == 10
    assert [trial["number"] for trial in result.trials] == list(range(len(result.trials)))
    assert all(0.25 <= trial["width"] <= 1 and 0.34 <= trial["depth"] <= 1 for trial in trained)


def test_a_trial_tells_the_size_of_the_network_that_is_built(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fake()
    result = run(SPACE, data, teacher, CONFIG, tmp_path, objective)
    for trial in result.front:
        model = Blueprint.from_json(trial["blueprint"]).build()
        assert trial["params"] == sum(parameter.numel() for parameter in model.parameters())


def test_the_choice_is_the_smallest_within_a_point_of_the_best(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fake()
    result = run(SPACE, data, teacher, CONFIG, tmp_path, objective)
    trained = [trial for trial in result.trials if trial["state"] == "trained"]
    best = max(trial["top1"] for trial in trained)
    expected = min((trial for trial in trained if trial["top1"] >= best - 1), key=lambda trial: trial["macs"])
    assert result.chosen["blueprint"] == expected["blueprint"]


def outcome(result: Result) -> tuple[Any, ...]:
    def still(trial: Any) -> dict[str, Any]:
        return {name: value for name, value in trial.items() if name != "seconds"}

    return [still(trial) for trial in result.trials], [still(trial) for trial in result.front], still(result.chosen)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "gp", "random", "grid"])
def test_a_search_cut_off_anywhere_finds_what_an_uninterrupted_one_finds(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path, sampler: str
) -> None:
    config, space = replace(CONFIG, sampler=sampler), uniform(BASE, step=0.01)
    whole = fake()
    expected = run(space, data, teacher, config, tmp_path / "whole", objective)
    for dies_at in (1, 2, 3, 2):  # of those that are left
        fake(dies_at)
        torch.manual_seed(dies_at)  # a new process starts with another state
        with pytest.raises(KeyboardInterrupt):
            run(space, data, teacher, config, tmp_path / "cut", objective)
    fit = fake()
    result = run(space, data, teacher, config, tmp_path / "cut", objective)
    assert outcome(result) == outcome(expected)
    left = len(fit.folders)
    assert (fit.folders, fit.seeds, fit.weights) == (whole.folders[-left:], whole.seeds[-left:], whole.weights[-left:])


def test_a_finished_search_trains_nothing_and_more_trials_go_on(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fake()
    first = run(SPACE, data, teacher, replace(CONFIG, trials=3), tmp_path, objective)
    idle = fake()
    assert outcome(run(SPACE, data, teacher, replace(CONFIG, trials=3), tmp_path, objective)) == outcome(first)
    assert not idle.folders
    more = fake()
    second = run(SPACE, data, teacher, CONFIG, tmp_path, objective)
    assert len(more.folders) == 3
    assert second.trials[: len(first.trials)] == first.trials


def test_a_grid_needs_steps(data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path) -> None:
    fake()
    with pytest.raises(InputError, match=r"search\.sampler: grid: the space must have steps, and width has none"):
        run(SPACE, data, teacher, replace(CONFIG, sampler="grid"), tmp_path, objective)


def test_seeds_tell_searches_apart(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    first, second = fake(), fake()
    for seed, folder in ((0, "a"), (1, "b")):
        first = second
        second = fake()
        run(SPACE, data, teacher, replace(CONFIG, trials=3, seed=seed), tmp_path / folder, objective)
    assert first.folders != second.folders


def test_what_is_too_large_is_not_trained(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fit = fake()
    limit = 600_000
    result = run(SPACE, data, teacher, replace(CONFIG, budget=Budget(macs=limit)), tmp_path, objective)
    states = {state: [t for t in result.trials if t["state"] == state] for state in ("trained", "infeasible")}
    assert len(states["trained"]) == len(fit.folders) == 6
    assert states["infeasible"]
    assert all(trial["macs"] <= limit for trial in states["trained"])
    assert all(trial["macs"] > limit and trial["top1"] is None for trial in states["infeasible"])
    best = max(states["trained"], key=lambda trial: trial["top1"])
    assert result.chosen["blueprint"] == best["blueprint"]  # a budget: the most accurate that keeps it


def test_a_share_is_one_of_the_teachers(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    from compress.cost import macs

    fake()
    config = replace(CONFIG, trials=3, budget=Budget(macs_share=0.2))
    whole = macs(teacher.model, (1, 8, 8))
    cached = Cached(teacher, tmp_path / "answers", data)
    for number, (guide, limit) in enumerate(
        [(teacher, whole), (cached, whole), (Ensemble([teacher, teacher]), 2 * whole)]
    ):
        result = run(SPACE, data, guide, config, tmp_path / str(number), objective)
        for trial in result.trials:
            assert (trial["state"] == "infeasible") == (trial["macs"] > 0.2 * limit)


def test_a_budget_that_nothing_keeps_names_the_nearest(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fit = fake()
    config = replace(CONFIG, trials=1, budget=Budget(macs=10))
    with pytest.raises(InputError, match=r"search\.budget: .*macs 10: no candidate keeps it: .* has macs \d+"):
        run(SPACE, data, teacher, config, tmp_path, objective)
    assert not fit.folders


def test_a_space_smaller_than_the_search_ends(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    def space(trial: BaseTrial) -> Candidate:
        return Candidate(replace(BASE, width=trial.suggest_categorical("width", [0.25, 0.5])))

    fit = fake()
    result = run(space, data, teacher, replace(CONFIG, trials=3), tmp_path, objective)
    assert len(fit.folders) == 2
    by_key = {trial["key"]: trial["top1"] for trial in result.trials if trial["state"] == "trained"}
    repeated = [trial for trial in result.trials if trial["state"] == "repeated"]
    assert repeated
    assert all(trial["top1"] == by_key[trial["key"]] for trial in repeated)


def test_a_candidate_that_diverges_is_left_behind(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fake(2, DivergedError)
    result = run(SPACE, data, teacher, replace(CONFIG, trials=3), tmp_path, objective)
    states = [trial["state"] for trial in result.trials]
    assert (states.count("diverged"), states.count("trained")) == (1, 3)


def test_another_config_data_or_teacher_in_the_folder_are_refused(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fake()
    run(SPACE, data, teacher, replace(CONFIG, trials=1), tmp_path, objective)
    for config, field in [
        (replace(CONFIG, seed=4), "search.seed"),
        (replace(CONFIG, fit=replace(CONFIG.fit, lr=0.2)), "search.fit.lr"),
        (replace(CONFIG, budget=Budget(macs=10**9)), "search.budget"),
    ]:
        with pytest.raises(InputError, match=rf"{field}: .* was started with"):
            run(SPACE, data, teacher, config, tmp_path, objective)
    with pytest.raises(InputError, match=r"teacher: .* was started with"):
        run(SPACE, data, Teacher(BASE.build()), CONFIG, tmp_path, objective)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("trials", {"trials": 0}),
        ("startup", {"startup": -1}),
        ("within", {"within": -0.1}),
        ("within", {"within": float("nan")}),
        ("sampler", {"sampler": "oracle"}),
        ("goals", {"goals": ("top1", "beauty")}),
        ("goals", {"goals": ()}),
        ("rungs", {"rungs": (2, 1)}),
        ("rungs", {"rungs": (3,)}),
        ("reduction", {"reduction": 1.0}),
        ("retries", {"retries": -1}),
        ("epochs", {"epochs": 0}),
    ],
)
def test_bad_settings_are_refused(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"search\.{field}: "):
        SearchConfig(**values)


def test_a_real_search_on_few_digits(data: kd.data.Data, teacher: Teacher, tmp_path: Path) -> None:
    config = replace(CONFIG, trials=2)
    guide = Cached(teacher, tmp_path / "answers", data)
    result = run(uniform(BASE, width=(0.25, 0.5)), data, guide, config, tmp_path / "search", objective)
    assert len(result.front) >= 1
    assert all(0 <= trial["top1"] <= 100 and trial["seconds"] > 0 for trial in result.front)
    assert not list(tmp_path.glob("search/trials/*/checkpoints"))
    assert isinstance(result.blueprint.build(), students.Classifier)
