"""What a search found and what it is worth, how training went. PNG, readable at the width of a phone."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.render.words import Report

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = Mapping[str, Any]


class Plot(NamedTuple):
    """A plot as the texts refer to it: the key of what it shows, its file, a heading and what is to be seen."""

    key: str
    file: str
    title: str
    caption: str


PLOTS = (
    Plot(
        "trials",
        "front.png",
        "What the search found",
        "Each point is a student after a short distillation. The line joins those that no other beats in both "
        "accuracy and work, the ring marks the one that was distilled in full. The dashed line is the teacher, "
        "which was trained in full.",
    ),
    Plot(
        "curves",
        "curves.png",
        "How training went",
        "After each epoch. Losses of different objectives cannot be compared with each other.",
    ),
)

# Okabe and Ito (2008): told apart under every common colour blindness.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
GREY, INK = "#9AA0A6", "#30343A"
STYLES = {"teacher": (INK, "-"), "scratch": (ORANGE, "--"), "student": (BLUE, "-")}
OTHER_STYLES = ((GREEN, "-."), (PURPLE, ":"), (SKY, "--"), (RED, "-."))


def shown(report: Report) -> list[Plot]:
    """The plots that have something to show."""
    return [plot for plot in PLOTS if report[plot.key]]


def front(report: Report) -> bytes:
    """The search's trials and their Pareto front, as PNG."""
    figure = _figure()
    axes = figure.subplots()
    _across(axes)
    trained = [trial for trial in report["trials"] if _top1(trial) is not None]
    axes.scatter(*_places(trained), s=26, color=GREY, label="trial")
    floor = min((_top1(trial) for trial in trained), default=0)
    too_large = [trial | {"top1_val": floor} for trial in report["trials"] if trial["state"] == "infeasible"]
    if too_large:  # never trained: they have a place on one axis only
        axes.scatter(*_places(too_large), marker="x", color=GREY, label="too large, not trained")
    best = sorted(report["front"], key=lambda point: point["macs"])
    axes.plot(*_places(best), color=BLUE, marker="o", markersize=6, drawstyle="steps-post", label="front")
    chosen = [point for point in best if _is_student(point, report)]
    if chosen:
        axes.scatter(*_places(chosen), s=170, facecolors="none", edgecolors=RED, linewidths=2, label="chosen")
    teacher = next((row["top1_val"] for row in report["rows"] if row["kind"] == "teacher"), None)
    if teacher is not None:
        axes.axhline(teacher, color=INK, linestyle="--", linewidth=1.2, label="teacher")
    _dress(axes, "MACs for one image, millions", "top-1 on validation, %")
    _legend(figure, axes)
    return _png(figure)


def curves(report: Report) -> bytes:
    """Top-1 on validation and training loss by epoch, as PNG."""
    figure = _figure()
    above, below = figure.subplots(2, 1, sharex=True)
    others = iter(OTHER_STYLES * (1 + len(report["curves"])))
    for name, curve in report["curves"].items():
        color, line = STYLES.get(name) or next(others)
        style = {"color": color, "linestyle": line, "label": _literal(name.removeprefix("stages/"))}
        style["marker"] = "o" if len(curve) == 1 else ""
        epochs = [point["epoch"] + 1 for point in curve]
        above.plot(epochs, [point["top1_val"] for point in curve], **style)
        below.plot(epochs, [point["loss"] for point in curve], **style)
    below.set_yscale("log")
    _dress(above, "", "top-1 on validation, %")
    _dress(below, "epochs", "training loss")
    _legend(figure, above)
    return _png(figure)


def methods(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Top-1 on test of each method, its seeds as dots and their mean as a bar, as PNG; the teacher is a line."""
    from matplotlib.figure import Figure

    teacher, *others = rows
    figure = Figure(figsize=(5.2, 1.2 + 0.3 * len(others)), layout="constrained")
    axes = figure.subplots()
    ordered = sorted((row for row in others if row["top1_test"]), key=lambda row: fmean(row["top1_test"]))
    for place, row in enumerate(ordered):
        color = ORANGE if row["name"] == "scratch" else BLUE
        axes.plot([fmean(row["top1_test"])] * 2, [place - 0.35, place + 0.35], color=color, linewidth=2.5)
        axes.scatter(row["top1_test"], [place] * len(row["top1_test"]), s=18, color=color)
    axes.axvline(fmean(teacher["top1_test"]), color=INK, linestyle="--", linewidth=1.2, label="teacher")
    axes.set_yticks(range(len(ordered)), [_literal(row["name"]) for row in ordered])
    _dress(axes, "top-1 on test, %", "")
    _legend(figure, axes)
    return _png(figure)


COSTS = {
    "params": ("parameters, thousands", 1e3),
    "macs": ("MACs for one image, millions", 1e6),
    "file_bytes": ("file, kB", 1e3),
    "latency_ms": ("milliseconds for one image", 1.0),
}


def retrained(front: Mapping[str, Any]) -> bytes:
    """A search's trials and its front, and what full training made of it, the mean over seeds, as PNG."""
    figure = _figure()
    axes = figure.subplots()
    _across(axes)
    label, unit = COSTS[front["cost"]]

    def places(points: Iterable[Point]) -> tuple[list[float], list[float]]:
        shown = sorted((point for point in points if point["top1"] is not None), key=lambda point: point[front["cost"]])
        return [point[front["cost"]] / unit for point in shown], [point["top1"] for point in shown]

    axes.scatter(*places(front["trials"]), s=26, color=GREY, label="trial")
    axes.plot(*places(front["front"]), color=BLUE, marker="o", markersize=6, drawstyle="steps-post", label="front")
    for split, color, marker in (("val", GREEN, "s"), ("test", ORANGE, "^")):
        at = [
            (_cost(row, front["cost"]) / unit, fmean(row[f"top1_{split}"]), _deviation(row[f"top1_{split}"]))
            for row in front["rows"]
        ]
        if at:
            x, mean, deviation = zip(*at, strict=True)
            style = {"fmt": marker, "markersize": 5, "capsize": 3, "linewidth": 1.2}
            axes.errorbar(x, mean, deviation, color=color, label=f"retrained, {split}", **style)
    teacher = front["teacher"]
    axes.scatter(
        _cost(teacher, front["cost"]) / unit, teacher["top1_val"], s=70, marker="*", color=INK, label="teacher, val"
    )
    _dress(axes, label, "top-1, %")
    _legend(figure, axes)
    return _png(figure)


def volume(front: Mapping[str, Any]) -> bytes:
    """What the finished trials dominate, as it grew, and what full training made of it, as PNG."""
    figure = _figure()
    axes = figure.subplots()
    shares = front["hypervolume"]
    numbers, grown = zip(*shares["by_trial"], strict=True)
    axes.plot(numbers, grown, color=BLUE, marker="o", markersize=4, drawstyle="steps-post", label="trials")
    for split, color, line in (("val", GREEN, "--"), ("test", ORANGE, ":")):
        if shares[split]:
            axes.axhline(fmean(shares[split]), color=color, linestyle=line, label=f"retrained, {split}")
    _dress(axes, "trial", "hypervolume, % of the box")
    _legend(figure, axes)
    return _png(figure)


def importances(shares: Mapping[str, float]) -> bytes:
    """The share of accuracy's variance that each parameter explains, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 1.2 + 0.4 * len(shares)), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    axes.barh([_literal(name) for name, _ in ordered], [100 * share for _, share in ordered], color=BLUE)
    _dress(axes, "share of the variance of top-1 that it explains, %", "")
    return _png(figure)


def contour(study: optuna.Study, parameters: Sequence[str]) -> bytes:
    """Accuracy over two parameters of a study of that alone, as PNG."""
    import matplotlib
    from optuna.visualization.matplotlib import plot_contour

    style = {"backend": "agg", "figure.figsize": (5.2, 4.8), "figure.constrained_layout.use": True}
    with matplotlib.rc_context(style), warnings.catch_warnings(action="ignore"):  # it draws with pyplot
        axes = plot_contour(study, list(parameters), target_name="top-1 on validation, %")
        axes.set_title("")
        _dress(axes, _literal(axes.get_xlabel()), _literal(axes.get_ylabel()))  # in an order of its own
        png = _png(axes.figure)
        matplotlib.pyplot.close(axes.figure)
    return png


def _cost(row: Point, name: str) -> float:
    return row["latency_ms"]["batch1"] if name == "latency_ms" else row[name]


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _top1(point: Point) -> Any:
    """Of a trial, which `search` calls top1."""
    return point.get("top1_val", point.get("top1"))


def _is_student(point: Point, report: Report) -> bool:
    """Whether this trial became the student: the same net has the same cost."""
    students = [row for row in report["rows"] if row["kind"] == "student"]
    return any(point["macs"] == row["macs"] and point["params"] == row["params"] for row in students)


def _places(points: Iterable[Point]) -> tuple[list[float], list[float]]:
    return [point["macs"] / 1e6 for point in points], [_top1(point) for point in points]


def _literal(name: str) -> str:
    r"""A name that matplotlib would not take for mathematics ($) or hide (a leading _)."""
    return "\u200b" * name.startswith("_") + name.replace("$", r"\$")


def _figure() -> Figure:
    """As small as a phone needs it; without pyplot, so there is no global state and no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(5.2, 4.8), layout="constrained")


def _across(axes: Axes) -> None:
    """A logarithmic axis, labelled with plain numbers where there is room for them."""
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(which="both", colors=INK)
    axes.grid(color="#E4E7EA", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, labelcolor=INK)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=220, facecolor="white")
    return buffer.getvalue()
