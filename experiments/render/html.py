"""report.html: one page that needs nothing but itself, no script, no request."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import yaml

from experiments.render import figures, words
from experiments.render.columns import ACCURACY, BATCH_1, BATCH_32, RATIOS, SIZE, TIME, Column, Group, Row
from experiments.render.markup import Markup, element, join
from experiments.render.plots import shown
from experiments.render.style import CSS
from experiments.render.words import Report

TABLE = (ACCURACY, SIZE, BATCH_1, BATCH_32, TIME)


def render(report: Report, images: Mapping[str, bytes]) -> str:
    """The whole page. `images` holds the PNG of each plot by file name; they are put into the page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", report["title"]),
        element("style", Markup(CSS)),
    )
    body = element("body", element("main", _parts(report, images)))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _parts(report: Report, images: Mapping[str, bytes]) -> list[Markup | None]:
    return [
        _header(report),
        _key_figures(report),
        _section("Every step", _table(report["rows"]), element("p", words.about_measures(report), class_="soft")),
        _section(RATIOS.title, _ratios(report["rows"])),
        _plots(report, images),
        _notes(report),
        _origin(report),
    ]


def _section(title: str, *children: Markup | None) -> Markup:
    return element("section", element("h2", title), *children)


def _header(report: Report) -> Markup:
    return element(
        "header",
        element("p", "Retort report", class_="eyebrow"),
        element("h1", report["title"]),
        element("p", words.headline(report), class_="headline"),
        element("p", f"{words.about_data(report)} Seed {report['seed']}.", class_="soft"),
    )


def _key_figures(report: Report) -> Markup | None:
    """The deployed model against the teacher, where there are both."""
    rows = report["rows"]
    if len(rows) < 2 or rows[0]["kind"] != "teacher":
        return None
    first, last = rows[0], rows[-1]
    accuracy = _key_figure(
        "top-1 on test", words.percent_sign(last["top1_test"]), f"teacher {words.percent_sign(first['top1_test'])}"
    )
    gains = (
        _gain(first, last, SIZE.columns[2], RATIOS.columns[1], "{} fewer MACs", "more MACs"),
    )
    return None


def _table(rows: Sequence[Row]) -> Markup:
    return element("div")
