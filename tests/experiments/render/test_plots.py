import io

import numpy as np
import optuna
import pytest
from matplotlib.image import imread

from experiments.render import plots


def _pixels(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return imread(io.BytesIO(png))[..., :3]


def _has(png, color):
    """Whether a spot of this colour is seen."""
    wanted = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return bool((np.abs(_pixels(png) - wanted).max(-1) < 0.02).sum() > 20)


def test_front_shows_trials_front_chosen_and_teacher(report):
    png = plots.front(report)
    assert all(_has(png, color) for color in (plots.GREY, plots.BLUE, plots.RED, plots.INK))


def test_only_the_trial_that_became_the_student_is_marked(report):
    for point in report["front"]:
        point["params"] += 1
    assert not _has(plots.front(report), plots.RED)


def test_curves_show_every_training(report):
    png = plots.curves(report)
    assert all(_has(png, color) for color in (plots.INK, plots.ORANGE, plots.BLUE, plots.GREEN, plots.PURPLE))
    del report["curves"]["student"]
    assert not _has(plots.curves(report), plots.BLUE)


def test_a_curve_of_one_epoch_is_seen(report):
    report["curves"] = {"student": [{"epoch": 0, "loss": 1.0, "top1_val": 50.0}]}
    assert _has(plots.curves(report), plots.BLUE)


def test_names_are_not_mathematics(report):
    report["curves"] = {"_$a": report["curves"]["student"], "$\\frac$": report["curves"]["teacher"]}
    assert _pixels(plots.curves(report)).min() < 0.5


def test_trials_as_the_search_leaves_them_are_understood(report):
    for trial in report["trials"]:  # the points of the front are among them
        trial["top1"] = trial.pop("top1_val")
    assert _has(plots.front(report), plots.BLUE)


@pytest.mark.parametrize("plot", [plots.front, plots.curves])
def test_nothing_to_show_is_no_error(plot, sparse):
    assert _pixels(plot(sparse)).shape[1] > 100
    assert plots.shown(sparse) == []


@pytest.fixture
def front(report):
    """A made-up front.json."""
    trials = [trial | {"top1": trial["top1_val"]} for trial in report["trials"]]
    row = {"top1_val": [88.0, 90.0], "top1_test": [87.0, 86.0], "macs": 400_000, "latency_ms": {"batch1": 0.1}}
    return {
        "cost": "macs",
        "trials": trials,
        "front": [point | {"top1": point["top1_val"]} for point in report["front"]],
        "rows": [row, row | {"macs": 900_000}],
        "teacher": {"top1_val": [98.0], "macs": 6_000_000, "latency_ms": {"batch1": 0.5}},
        "hypervolume": {"val": [90.0, 91.0], "test": [89.0], "found": 88.0, "by_trial": [(0, 50.0), (2, 80.0)]},
    }


def test_a_retrained_front_stands_beside_the_one_that_was_found(front):
    png = plots.retrained(front)
    assert all(_has(png, color) for color in (plots.GREY, plots.BLUE, plots.GREEN, plots.ORANGE, plots.INK))
    assert not _has(plots.retrained(front | {"rows": []}), plots.GREEN)


def test_a_front_is_drawn_over_the_cost_that_was_searched(front):
    points = [point | {"latency_ms": point["macs"] / 4e6} for point in front["front"]]
    png = plots.retrained(front | {"cost": "latency_ms", "front": points, "trials": points})
    assert _has(png, plots.BLUE)
    assert png != plots.retrained(front)


def test_the_volume_grows_over_the_trials_and_ends_in_what_was_retrained(front):
    png = plots.volume(front)
    assert all(_has(png, color) for color in (plots.BLUE, plots.GREEN, plots.ORANGE))
    front["hypervolume"] |= {"val": [], "test": []}
    assert not _has(plots.volume(front), plots.GREEN)


def test_importances_are_bars():
    few, more = (_pixels(plots.importances(shares)) for shares in ({"$width": 0.8, "_depth": 0.2}, {"width": 1.0}))
    assert few.shape[0] > more.shape[0]
    assert _has(plots.importances({"width": 1.0}), plots.BLUE)


def test_a_contour_is_drawn_without_a_trace_of_its_style():
    import matplotlib

    before = dict(matplotlib.rcParams)
    study = optuna.create_study(direction="maximize")
    space = {
        "width": optuna.distributions.FloatDistribution(0, 1),
        "family": optuna.distributions.CategoricalDistribution(["a", "b"]),
    }
    for number in range(6):
        drawn = {"width": number / 6, "family": "ab"[number % 2]}
        study.add_trial(optuna.trial.create_trial(params=drawn, distributions=space, value=float(number)))
    png = _pixels(plots.contour(study, ["width", "family"]))
    assert png.std() > 0.1
    assert png.shape == _pixels(plots.volume({"hypervolume": {"val": [], "test": [], "by_trial": [(0, 1)]}})).shape
    assert {k: v for k, v in matplotlib.rcParams.items() if k != "backend"} == {
        k: v for k, v in before.items() if k != "backend"
    }
    assert matplotlib.pyplot.get_fignums() == []
