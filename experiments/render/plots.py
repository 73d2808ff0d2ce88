"""The plots of a report, as PNG bytes: the search's front with all artefacts, and the training curves."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.render.figures import percent
from experiments.render.words import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (2008), which colour-blind readers can tell apart; markers and dashes say the same again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("s", "D", "^", "v", "P", "X", "o", "<", ">")
DASHES = ("-", "--", "-.", ":")
FRONT, OTHERS = "#0072B2", "#A8ADB3"
VISIBLE = 25.0  # points below the best: what lies lower stands at the lower edge, so that the rest stays readable


@dataclass(frozen=True)
class Plot:
    """A plot as it is shown in a document."""

    file: str
    title: str
    caption: str


PLOTS = (
    Plot(
        "front.png",
        "Accuracy against work",
        "Top-1 on validation against multiply-accumulates: the search's candidates after their short distillation, "
        "and all artefacts of this run",
    ),
    Plot("curves.png", "Training", "Training loss and top-1 on validation by epoch"),
)


def front(report: Report) -> bytes:
    """Top-1 on validation (percent) against MACs (millions, logarithmic)."""
    figure = _figure(8.0, 4.6)
    axes = figure.subplots()
    best = [point for point in report["front"] if _known(point)]
    others = [point for point in report["trials"] if _known(point) and point not in best]
    rows = [row for row in report["rows"] if _known(row)]
    floor = max((_top1(point) for point in (*best, *others, *rows)), default=100.0) - VISIBLE

    def draw(points: list[Any], **style: Any) -> None:
        if points:
            axes.plot([point["macs"] / 1e6 for point in points], [max(_top1(p), floor) for p in points], **style)

    draw(others, marker="o", linestyle="", color=OTHERS, markersize=5, label="other candidates")
    draw(
        sorted(best, key=lambda point: point["macs"]),
        marker="o",
        color=FRONT,
        markersize=5,
        label="front of the search",
    )
    student = next((row for row in rows if row["kind"] == "student"), None)
    chosen = [point for point in best if student and _same(point, student)]
    draw(chosen, marker="o", linestyle="", color="none", markeredgecolor="black", markersize=13, label="chosen")
    for number, row in enumerate(rows):
        below = f" ({percent(_top1(row))}%, below the edge)" if _top1(row) < floor else ""
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        style = {"color": colour, "marker": marker, "markersize": 8, "alpha": 0.9, "markeredgecolor": "white"}
        draw([row], linestyle="", label=_literal(row["name"]) + below, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(_sparse())
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    _finish(
        axes, "MACs for one image, millions", "top-1 on validation, %", empty=not (best or others or rows), **beside
    )
    return _png(figure)


def curves(report: Report) -> bytes:
    """Loss and top-1 on validation (percent) by epoch, a line for each training."""
    figure = _figure(8.0, 3.8)
    axes = figure.subplots(1, 2)
    for panel, key, label in zip(axes, ("loss", "top1_val"), ("training loss", "top-1 on validation, %"), strict=True):
        lines = list(_lines(report["curves"], key))
        for number, (name, epochs, values) in enumerate(lines):
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
            lone = "o" if len(epochs) == 1 else None
            panel.plot(epochs, values, label=_literal(name), linewidth=1.8, marker=lone, **style)
        panel.xaxis.get_major_locator().set_params(integer=True)
        _finish(panel, "epoch", label, empty=not lines)
    return _png(figure)


def _lines(curves: Mapping[str, Any], key: str) -> Iterator[tuple[str, list[int], list[float]]]:
    for name, curve in curves.items():
        known = [point for point in curve if point.get(key) is not None]
        if known:
            yield name, [point["epoch"] for point in known], [point[key] for point in known]


def _top1(point: Mapping[str, Any]) -> Any:
    """Of a candidate or a row."""
    return point.get("top1_val", point.get("top1"))


def _known(point: Mapping[str, Any]) -> bool:
    return bool(point.get("macs")) and _top1(point) is not None


def _same(point: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return all(point.get(key) == row[key] for key in ("macs", "params"))


def _literal(name: str) -> str:
    r"""A name that matplotlib would not take for mathematics ($) or hide (leading _)."""
    return "\u200b" * name.startswith("_") + name.replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # 0.5 s; and no pyplot: no state, no display

    return Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")


def _sparse() -> Any:
    from matplotlib.ticker import LogFormatter

    return LogFormatter(minor_thresholds=(2, 0.5))


def _finish(axes: Axes, across: str, up: str, *, empty: bool, **legend: Any) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    if empty:
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", color="#666666")
    else:
        axes.legend(frameon=False, fontsize=8, **legend)


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    target = io.BytesIO()
    FigureCanvasAgg(figure).print_png(target)
    return target.getvalue()
