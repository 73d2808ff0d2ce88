"""report.html: the report as one page that needs nothing beside it, no network and no script."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

import yaml

from experiments.render import words
from experiments.render.columns import TABLES, Column, Group, Row, value
from experiments.render.figures import MISSING, count, milliseconds, percent, size
from experiments.render.plots import PLOTS, Plot
from experiments.render.style import STYLE
from experiments.render.words import Report


def render(report: Report, images: Mapping[str, bytes]) -> str:
    """The page. `images` are the PNGs of the plots by file name; a plot without one is left out."""
    title = escape(report["title"])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="lead">{escape(words.headline(report))}</p>
{_figures(report["rows"])}
</header>
<main>
{"".join(_sections(report, images))}
</main>
</body>
</html>
"""


def _sections(report: Report, images: Mapping[str, bytes]) -> Iterator[str]:
    for title, groups in TABLES:
        yield _section(title, _table(title, groups, report["rows"]))
    yield f'<p class="quiet">{escape(words.LEGEND)}</p>\n'
    yield _section("Notes", _notes(report))
    for plot in PLOTS:
        if plot.file in images:
            yield _section(plot.title, _figure(plot, images[plot.file]))
    data = (words.data(report), *report["data"]["notes"])
    yield _section("Data", "\n".join(f"<p>{escape(sentence)}</p>" for sentence in data))
    yield _section("Environment", _facts(words.environment(report)))
    seed = f'<p class="quiet">Seed: {escape(words.plain(report["seed"]))}.</p>'
    yield _section("Command", f'{seed}\n<pre class="card">{escape(report["command"])}</pre>')
    config = escape(yaml.safe_dump(report["config"], sort_keys=False))
    yield f'<details class="card"><summary>Configuration</summary>\n<pre>{config}</pre></details>'


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>\n"


def _figures(rows: Sequence[Row]) -> str:
    """The key figures of the deployed model, against the first row."""
    if not rows:
        return ""
    last, first = rows[-1], rows[0]
    shown = (
        ("Top-1 on test", percent, "%", ("top1_test",), None),
        ("File", size, "", ("file_bytes",), ("smaller", "larger")),
        ("Params", count, "", ("params",), ("fewer", "more")),
        ("MACs", count, "", ("macs",), ("fewer", "more")),
        ("Batch of 1, p50", milliseconds, " ms", ("latency_ms", "batch1", "p50"), ("faster", "slower")),
        ("Batch of 32, p50", milliseconds, " ms", ("latency_ms", "batch32", "p50"), ("faster", "slower")),
    )
    cards = []
    for title, form, unit, path, directions in shown:
        now, then = value(last, *path), value(first, *path)
        written, before = (MISSING if number is None else f"{form(number)}{unit}" for number in (now, then))
        gain = words.gain(then / now, *directions) if directions and now and then else ""
        cards.append(
            f'<div class="card"><dt>{title}</dt><dd class="value">{written}</dd><dd class="gain">{gain}</dd>'
            f'<dd class="against">{escape(first["name"])}: {before}</dd></div>'
        )
    return '<dl class="figures">' + "".join(cards) + "</dl>"


def _table(title: str, groups: Sequence[Group], rows: Sequence[Row]) -> str:
    columns = [(column, _start(column, group)) for group in groups for column in group.columns]
    over = "".join(
        f'<th class="start" scope="colgroup" colspan="{len(group.columns)}">{escape(group.title)}</th>'
        for group in groups
    )
    heads = "".join(f'<th scope="col"{start}>{escape(column.title)}</th>' for column, start in columns)
    body = "\n".join(_row(row, columns, deployed=row is rows[-1]) for row in rows)
    return f"""<div class="scroll card" role="region" aria-label="{escape(title)}" tabindex="0">
<table>
<thead>
<tr><th rowspan="2" scope="col">Artefact</th>{over}</tr>
<tr>{heads}</tr>
</thead>
<tbody>
{body}
</tbody>
</table>
</div>"""


def _start(column: Column, group: Group) -> str:
    """A group's first column has a line on its left."""
    return ' class="start"' if column is group.columns[0] else ""


def _row(row: Row, columns: Iterable[tuple[Column, str]], *, deployed: bool) -> str:
    cells = "".join(f"<td{start}>{escape(column.cell(row))}</td>" for column, start in columns)
    mark = '<span class="mark">deployed</span>' if deployed else ""
    kind = ' class="deployed"' if deployed else ""
    return f'<tr{kind}><th scope="row">{escape(row["name"])}{mark}</th>{cells}</tr>'


def _notes(report: Report) -> str:
    """What got worse stands out."""
    items = []
    for row, worse in zip(report["rows"], words.problems(report["rows"]), strict=True):
        for note in row["notes"]:
            mark = " worse" if note in worse else ""
            items.append(f'<li class="card{mark}"><b>{escape(row["name"])}</b>{escape(note)}</li>')
    items += [f'<li class="card">{escape(note)}</li>' for note in report["notes"]]
    return '<ul class="notes">' + "".join(items) + "</ul>" if items else "<p>None.</p>"


def _figure(plot: Plot, png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f"""<figure class="card">
<div class="scroll" role="region" aria-label="{escape(plot.title)}" tabindex="0">
<img src="{source}" alt="{escape(plot.caption)}">
</div>
<figcaption>{escape(plot.caption)}.</figcaption>
</figure>"""


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    items = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts)
    return f'<dl class="facts card">\n{items}\n</dl>'
