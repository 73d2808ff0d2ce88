from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import BaseTrial
from scipy.stats import spearmanr

import kd.data
import students
from compress import Export, OnnxModel, Prune, Quantize, Stage, load_artefact
from kd.data import Augment, DataConfig
from kd.errors import DivergedError, InputError
from kd.evaluate import evaluate
from kd.fit import Fit, History
from kd.loss import Objective, Term
from kd.losses import KD
from search import Budget, Candidate, Result, SearchConfig, compressed, distilled, judge, run, uniform
from search.storage import FILE
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
    """Trains nothing: larger is better, by a figure without ties, and epochs help. May die in its n-th training."""

    def __init__(self, dies_at: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.folders: list[str] = []
        self.seeds: list[int] = []
        self.weights: list[float] = []
        self.dies_at, self.error = dies_at, error

    def __call__(self, regime: Any, data: Any, config: Fit, folder: Path, label: str, stop: Any) -> History:
        self.folders.append(folder.name)
        self.seeds.append(config.seed)
        self.weights.append(next(regime.student.parameters()).sum().item())
        if len(self.folders) == self.dies_at:
            raise self.error("as asked")
        params = sum(parameter.numel() for parameter in regime.student.parameters())
        history = History(best_name="student")
        for epoch in range(config.epochs):
            history.best_top1 = 90 - 1e5 / (params + 5e3) - 1 / (epoch + 1)
            history.epochs.append({"top1_val": history.best_top1, "seconds": 0.25})
            history.stopped = stop is not None and stop(history)
            if history.stopped:
                break
        return history


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


def test_a_candidate_that_cannot_be_built_or_trained_is_left_behind(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    def space(trial: BaseTrial) -> Candidate:
        name = trial.suggest_categorical("name", ["inception_v3", "cifar_resnet20"])
        return Candidate(replace(BASE, name=str(name), width=trial.suggest_float("width", 0.25, 1)))

    fake(3, RuntimeError)
    result = run(space, data, teacher, replace(CONFIG, trials=4), tmp_path, objective)
    states = [trial["state"] for trial in result.trials]
    assert states.count("trained") == 4
    refused = [trial for trial in result.trials if trial["state"] == "refused"]
    assert any("inception_v3" in trial["why"] for trial in refused)
    assert [trial["why"] for trial in refused if "inception_v3" not in trial["why"]] == ["as asked"]


def test_an_error_in_the_first_training_is_not_the_candidates(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fake(1, RuntimeError)
    with pytest.raises(RuntimeError, match="as asked"):
        run(SPACE, data, teacher, CONFIG, tmp_path, objective)


def test_a_trial_that_dies_again_and_again_is_given_up(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    config = replace(CONFIG, trials=2, retries=2)
    keys = set()
    for _ in range(3):
        fit = fake(1, SystemExit)  # as if killed
        with pytest.raises(SystemExit):
            run(SPACE, data, teacher, config, tmp_path, objective)
        keys.update(fit.folders)
    fit = fake()
    result = run(SPACE, data, teacher, config, tmp_path, objective)
    assert len(keys) == 1
    assert keys.isdisjoint(fit.folders)
    assert [trial["state"] for trial in result.trials] == ["trained", "trained"]


def test_a_trial_that_gets_on_between_its_deaths_is_not_given_up(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    config = replace(CONFIG, trials=1, retries=1)
    for number in range(3):
        first = fake(1, SystemExit)
        with pytest.raises(SystemExit):
            run(SPACE, data, teacher, config, tmp_path, objective)
        checkpoint = tmp_path / "trials" / first.folders[0] / "checkpoints" / f"step-{number}.safetensors"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()
    last = fake()
    run(SPACE, data, teacher, config, tmp_path, objective)
    assert last.folders == first.folders


def test_ctrl_c_is_not_held_against_a_trial(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    config = replace(CONFIG, trials=1, retries=0)
    for _ in range(3):
        first = fake(1)
        with pytest.raises(KeyboardInterrupt):
            run(SPACE, data, teacher, config, tmp_path, objective)
    last = fake()
    run(SPACE, data, teacher, config, tmp_path, objective)
    assert last.folders == first.folders


def test_rungs_spare_epochs_and_the_front_is_of_those_that_went_to_the_end(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    space = distilled(uniform(BASE), {"kd": lambda trial: KD(temperature=trial.suggest_float("temperature", 1, 8))})
    goals = ("top1", "params")
    config = replace(CONFIG, trials=30, rungs=(1, 3), fit=replace(CONFIG.fit, epochs=5), goals=("top1",))
    fake()
    result = run(space, data, teacher, config, tmp_path / "one goal", objective)
    stopped = [trial for trial in result.trials if trial["state"] == "stopped"]
    assert {trial["epochs"] for trial in stopped} == {1, 3}
    assert all(list(trial["rungs"]) == ["1", "3"][: (trial["epochs"] + 1) // 2] for trial in stopped)
    best = max(trial["top1"] for trial in result.trials if trial["top1"] is not None)
    assert [trial["top1"] for trial in result.front] == [best]
    assert result.chosen["epochs"] == 5
    fake()
    result = run(uniform(BASE), data, teacher, replace(config, goals=goals), tmp_path / "two", objective)
    assert len(result.front) > 1  # here larger is better, so that none is dominated
    assert all(trial["state"] != "stopped" for trial in result.trials)


def test_epochs_end_a_search_too(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fake()
    result = run(SPACE, data, teacher, replace(CONFIG, trials=100, epochs=7), tmp_path, objective)
    assert sum(trial["epochs"] or 0 for trial in result.trials) == 8  # of two each


def test_other_losses_and_stages_make_another_candidate_of_the_same_network(
    data: kd.data.Data, teacher: Teacher, tmp_path: Path
) -> None:
    task = judge.Task(data, teacher, objective, CONFIG.fit, 0)

    def cold() -> Objective:
        return Objective({"kd": Term(KD(temperature=1.0))})

    def heavy() -> Objective:
        return Objective({"kd": Term(KD(), 2.0)})

    made = [
        Candidate(BASE),
        Candidate(BASE, objective),
        Candidate(BASE, cold),
        Candidate(BASE, heavy),
        Candidate(BASE, stages=(Prune(0.5),)),
        Candidate(BASE, stages=(Prune(0.6),)),
        Candidate(replace(BASE, width=0.5)),
    ]
    keys = [task.sketch(candidate)["key"] for candidate in made]
    assert len(set(keys)) == len(made)
    assert len({task.sketch(candidate)["net"] for candidate in made}) == 2
    assert keys == [task.sketch(candidate)["key"] for candidate in made]


def test_a_student_may_start_from_the_weights_of_a_larger_one(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    source = replace(BASE, width=1.0).build()
    grown = fake()
    whole = uniform(BASE, width=(1.0, 1.0), depth=(1.0, 1.0))
    run(whole, data, teacher, replace(CONFIG, trials=1), tmp_path / "c", objective, source)
    assert grown.weights == [next(source.parameters()).sum().item()]
    with pytest.raises(InputError, match=r"source: .* was started with"):
        run(SPACE, data, teacher, replace(CONFIG, trials=1), tmp_path / "c", objective)


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
        ("zero_cost", {"zero_cost": ("horoscope",)}),
        ("epochs", {"epochs": 0}),
    ],
)
def test_bad_settings_are_refused(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"search\.{field}: "):
        SearchConfig(**values)


def test_the_deployed_file_is_a_goal_and_a_limit_and_is_measured_once(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fit = fake()
    goals, limit = ("top1", "latency_ms", "file_bytes"), 120_000
    config = replace(CONFIG, trials=3, goals=goals, budget=Budget(file_bytes=limit), sampler="grid")
    space = uniform(BASE, width=(0.25, 1.0), depth=(0.34, 0.67), step=0.25)
    result = run(space, data, teacher, config, tmp_path, objective)
    assert len(fit.folders) == 3
    assert all(trial["latency_ms"] > 0 for trial in result.trials)
    assert all((trial["file_bytes"] > limit) == (trial["state"] == "infeasible") for trial in result.trials)
    assert {trial["state"] for trial in result.trials} >= {"trained", "infeasible"}
    study = read(tmp_path)
    measured = [name for name in study.user_attrs if name.startswith("deployed")]
    assert len(measured) == len({trial["net"] for trial in result.trials})
    file = Export().write(Blueprint.from_json(result.chosen["blueprint"]).build(), data, tmp_path / "model.onnx")
    assert abs(file.path.stat().st_size - result.chosen["file_bytes"]) < 200


def test_a_compressed_candidate_is_scored_as_what_comes_out(
    data: kd.data.Data, teacher: Teacher, tmp_path: Path
) -> None:
    def stages(trial: BaseTrial) -> list[Stage]:
        return [Prune(target=trial.suggest_categorical("kept", [0.5, 0.9])), Export(), Quantize(mode="dynamic")]

    config = replace(CONFIG, trials=2, goals=("top1", "macs", "file_bytes"), sampler="grid")
    space = compressed(uniform(BASE, width=(0.5, 0.5), depth=(0.34, 0.34)), stages)
    result = run(space, data, teacher, config, tmp_path, objective)
    by_kept = {trial["suggested"]["kept"]: trial for trial in result.trials}
    assert 0.4 < by_kept[0.5]["macs"] / by_kept[0.9]["macs"] < 0.7
    for trial in by_kept.values():
        artefact = load_artefact(tmp_path / "trials" / trial["key"])
        assert isinstance(artefact, OnnxModel)
        assert artefact.path.stat().st_size == trial["file_bytes"]
        assert evaluate(artefact, data.evaluation("val")).top1 == trial["top1"]


def read(folder: Path) -> optuna.Study:
    backend = JournalFileBackend(str(folder / FILE))
    return optuna.load_study(study_name="search", storage=JournalStorage(backend))


def test_zero_cost_scores_are_noted_and_ranked_beside_plain_size(
    data: kd.data.Data, teacher: Teacher, fake: Callable[..., FakeFit], tmp_path: Path
) -> None:
    fake()  # where params decide
    config = replace(CONFIG, trials=5, zero_cost=("synflow", "naswot", "diswot"), sampler="random")
    result = run(SPACE, data, teacher, config, tmp_path, objective)
    trained = [trial for trial in result.trials if trial["state"] == "trained"]
    assert all(trial["zero_cost"].keys() == {"synflow", "naswot", "diswot"} for trial in trained)
    found = result.rank_correlation()
    assert found.keys() == {"params", "macs", "synflow", "naswot", "diswot"}
    assert found["params"] == {"spearman": pytest.approx(1), "kendall": pytest.approx(1)}
    by_flow = sorted(trained, key=lambda trial: trial["zero_cost"]["synflow"])
    expected = spearmanr(range(5), [trial["top1"] for trial in by_flow]).statistic
    assert found["synflow"]["spearman"] == pytest.approx(expected)


def test_a_real_search_on_few_digits(data: kd.data.Data, teacher: Teacher, tmp_path: Path) -> None:
    config = replace(CONFIG, trials=2)
    guide = Cached(teacher, tmp_path / "answers", data)
    result = run(uniform(BASE, width=(0.25, 0.5)), data, guide, config, tmp_path / "search", objective)
    assert len(result.front) >= 1
    assert all(0 <= trial["top1"] <= 100 and trial["seconds"] > 0 for trial in result.front)
    assert not list(tmp_path.glob("search/trials/*/checkpoints"))
    assert isinstance(result.blueprint.build(), students.Classifier)
