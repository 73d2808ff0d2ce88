from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from matplotlib import image
from matplotlib.axes import Axes

from experiments.render import plots


def _pixels(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return image.imread(io.BytesIO(png))


@pytest.fixture
def drawn(monkeypatch):
    """What is handed to matplotlib: label -> (x, y)."""
    lines = {}
    original = Axes.plot

    def plot(self, x, y, **style):
        lines[style["label"]] = (list(x), list(y))
        return original(self, x, y, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    return lines


def test_front_shows_candidates_front_choice_and_artefacts(report, drawn):
    assert _pixels(plots.front(report)).shape[1] >= 1000
    assert drawn["front of the search"] == ([1.9, 2.7, 10.12, 40.5], [88.3, 90.0, 93.7, 94.6])
    assert drawn["other candidates"] == ([12.9], [91.1])
    assert drawn["chosen"] == ([10.12], [93.7])
    assert drawn["teacher"] == ([127.3], [98.52])
    assert drawn["05-quantize"] == ([4.102], [96.67])


def test_what_lies_far_below_stands_at_the_edge_and_says_so(report, drawn):
    plots.front(report)
    assert drawn["01-prune (61.48%, below the edge)"] == ([5.014], [98.52 - plots.VISIBLE])


def test_front_reads_either_name_of_the_accuracy(report, drawn):
    for point in report["front"]:
        point["top1_val"] = point.pop("top1")
    plots.front(report)
    assert drawn["front of the search"][1] == [88.3, 90.0, 93.7, 94.6]


def test_curves_show_each_training(report, drawn):
    plots.curves(report)
    epochs, accuracies = drawn["student"]
    assert epochs == list(range(20))
    assert accuracies == [point["top1_val"] for point in report["curves"]["student"]]
    assert set(drawn) == {"teacher", "scratch", "student"}


def test_nothing_to_show(unknown):
    empty = unknown | {"front": [], "trials": [], "curves": {}}
    for draw in (plots.front, plots.curves):
        assert np.ptp(_pixels(draw(empty))) > 0
    gap = {"teacher": [], "student": [{"epoch": 0, "loss": None, "top1_val": None}]}
    _pixels(plots.curves(unknown | {"curves": gap}))


def test_names_are_no_mathematics_and_are_not_hidden(report):
    report["rows"][0]["name"] = "$x_{$ _a"
    report["rows"][1]["name"] = "_hidden"
    report["curves"]["$"] = report["curves"]["teacher"]
    _pixels(plots.front(report))
    _pixels(plots.curves(report))


def test_needs_no_display(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its import fails
    plots.front(report)
    plots.curves(report)
