"""report.html: one page that needs nothing but itself: no script, no request."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import yaml

from experiments.render import words
from experiments.render.columns import ACCURACY, BATCH_1, BATCH_32, RATIOS, SIZE, TIME, TOP1_TEST, Column, Group, Row
from experiments.render.markup import Markup, element
from experiments.render.plots import Plot, shown
from experiments.render.style import CSS
from experiments.render.words import Report

GROUPS = (ACCURACY, SIZE, BATCH_1, BATCH_32, TIME)


def render(report: Report, images: Mapping[str, bytes]) -> str:
    """The whole page. `images` holds the PNG of each plot by file name; they become part of the page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", report["title"]),
        element("style", Markup(CSS)),
    )
    main = element(
        "main",
        _header(report),
        _key_figures(report),
        _section("Every step", _scroll("Every step", _steps(report["rows"])), _soft(words.about_measures(report))),
        _section(RATIOS.title, _scroll(RATIOS.title, _ratios(report["rows"]))),
        element("section", [_plot(plot, images[plot.file]) for plot in shown(report)], class_="plots"),
        _notes(report),
        _origin(report),
    )
    return f"<!doctype html>\n{element('html', head, element('body', main), lang='en')}\n"


def _section(title: str, *children: Markup) -> Markup:
    return element("section", element("h2", title), children)


def _soft(text: str) -> Markup:
    return element("p", text, class_="soft")


def _header(report: Report) -> Markup:
    return element(
        "header",
        element("p", "Retort report", class_="eyebrow"),
        element("h1", report["title"]),
        element("p", words.headline(report), class_="headline"),
        _soft(words.about_data(report)),
    )


def _key_figures(report: Report) -> Markup | None:
    gains = words.gains(report)
    if not gains:
        return None
    first, last = report["rows"][0], report["rows"][-1]
    cards = [_card(TOP1_TEST.quantity(last), "top-1 on test", None, TOP1_TEST.quantity(first))]
    cards += [_card(gain.factor, gain.label, gain.now, gain.teacher, gain.worse) for gain in gains]
    return element("section", element("dl", cards, class_="key-figures"), aria_label="Key figures")


def _card(figure: str, label: str, now: str | None, teacher: str, worse: bool = False) -> Markup:
    details = [element("small", now) if now else None, element("small", f"teacher {teacher}")]
    return element(
        "div", element("dt", label, details), element("dd", figure), class_="card worse" if worse else "card"
    )


def _scroll(label: str, table: Markup) -> Markup:
    """A table that is wider than the screen scrolls by itself, also with the keyboard."""
    return element("div", table, class_="card scroll", role="region", aria_label=label, tabindex="0")


def _steps(rows: Sequence[Row]) -> Markup:
    spans = [
        element("th", group.title, colspan=str(len(group.columns)), scope="colgroup", class_="first")
        for group in GROUPS
    ]
    columns = [(column, "first" if column is group.columns[0] else "") for group in GROUPS for column in group.columns]
    titles = [element("th", column.short or column.title, scope="col", class_=edge) for column, edge in columns]
    head = element(
        "thead", element("tr", element("th", "step", rowspan="2", scope="col"), spans), element("tr", titles)
    )
    cells = [[element("td", column.cell(row), class_=edge) for column, edge in columns] for row in rows]
    return element("table", head, _body(rows, cells))


def _span(group: Group) -> Markup:
    return element("th", group.title, colspan=str(len(group.columns)), scope="colgroup", class_="first")


def _ratios(rows: Sequence[Row]) -> Markup:
    columns = RATIOS.columns
    largest = {column: max((column.value(row) or 0 for row in rows), default=0) for column in columns}
    titles = [element("th", column.title, scope="col") for column in columns]
    head = element("thead", element("tr", element("th", "step", scope="col"), titles))
    cells = [[_ratio(column, row, largest[column]) for column in columns] for row in rows]
    return element("table", head, _body(rows, cells), class_="ratios")


def _ratio(column: Column, row: Row, largest: float) -> Markup:
    """The number above a bar that is full for the largest of its column."""
    value = column.value(row)
    if not value:
        return element("td", column.cell(row))
    bar = element("span", class_="bar", style=f"width:{100 * value / largest:.0f}%")
    return element("td", column.cell(row), bar, class_="worse" if value < 1 else "")


def _body(rows: Sequence[Row], cells: Sequence[Sequence[Markup]]) -> Markup:
    """A line a row, the last of them marked as what is deployed."""
    lines = [_line(row, line, row is rows[-1]) for row, line in zip(rows, cells, strict=True)]
    return element("tbody", lines)


def _line(row: Row, cells: Sequence[Markup], deployed: bool) -> Markup:
    name = element("th", row["name"], element("span", "deployed") if deployed else None, scope="row")
    return element("tr", name, cells, class_="deployed" if deployed else "")


def _plot(plot: Plot, png: bytes) -> Markup:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = element("img", src=source, alt=f"{plot.title}. {plot.caption}")
    return element("figure", element("h2", plot.title), image, element("figcaption", plot.caption), class_="card")


def _notes(report: Report) -> Markup | None:
    notes = words.notes(report)
    items = [element("li", element("b", name) if name else None, note) for name, note in notes]
    return _section("Worth knowing", element("ul", items, class_="notes card")) if items else None


def _origin(report: Report) -> Markup:
    facts = [(element("dt", label), element("dd", value)) for label, value in words.about_environment(report)]
    config = yaml.safe_dump(report["config"], sort_keys=False, allow_unicode=True)
    return _section(
        "How it was made",
        element("pre", element("code", report["command"]), class_="copy card"),
        element("dl", facts, class_="facts card"),
        element("details", element("summary", "Configuration"), element("pre", config), class_="card"),
    )
