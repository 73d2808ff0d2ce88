import io

import numpy as np
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
