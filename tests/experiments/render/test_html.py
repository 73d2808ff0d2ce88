from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from experiments.render import html, words
from experiments.render.columns import TABLES

VOID = {"meta", "img", "br", "link"}
IMAGES = {"front.png": b"front", "curves.png": b"curves"}


class Page(HTMLParser):
    """Fails on tags that do not match; keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_is_one_document_without_script_and_requests(report):
    text = html.render(report, IMAGES)
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert not page.all("script")
    assert not page.all("link")
    assert not re.search(r"https?://|url\(|@import", text)
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:image/png;base64,") or "src" not in attributes


def test_shows_every_row_in_both_tables_and_marks_the_last(report):
    text = html.render(report, IMAGES)
    for row in report["rows"]:
        assert text.count(f'<th scope="row">{row["name"]}') == len(TABLES)
    marked = re.findall(r'<tr class="deployed"><th scope="row">([^<]*)', text)
    assert marked == ["05-quantize"] * len(TABLES)


def test_rows_have_as_many_cells_as_the_head_has_columns(report):
    tables = re.findall(r"<table>.*?</table>", html.render(report, IMAGES), flags=re.DOTALL)
    for table, (_, groups) in zip(tables, TABLES, strict=True):
        columns = sum(len(group.columns) for group in groups)
        assert sum(map(int, re.findall(r'colspan="(\d+)"', table))) == columns
        for row in re.findall(r'<tr[^>]*><th scope="row">.*?</tr>', table):
            assert row.count("<td") == columns


def test_says_everything_else(report):
    text = " ".join(Page(html.render(report, IMAGES)).text)
    notes = [note for row in report["rows"] for note in row["notes"]]
    assert len(notes) > 2
    for part in (words.headline(report), words.data(report), report["command"], *notes, *report["notes"]):
        assert part in text
    for name, fact in words.environment(report):
        assert name in text
        assert fact in text
    assert "val_fraction: 0.15" in text


def test_only_what_got_worse_stands_out(report):
    worse = re.findall(r'<li class="card worse"><b>([^<]*)</b>', html.render(report, IMAGES))
    assert worse == ["01-prune", "03-lowrank", "03-lowrank"]


def test_key_figures_say_slower_where_it_is_slower(report):
    first, last = report["rows"][0], report["rows"][-1]
    last["latency_ms"]["batch1"]["p50"] = 2 * first["latency_ms"]["batch1"]["p50"]
    assert '<dd class="gain">2.00× slower</dd>' in html.render(report, IMAGES)


def test_images_have_alternative_texts_and_missing_ones_are_left_out(report):
    assert [bool(image["alt"]) for image in Page(html.render(report, IMAGES)).all("img")] == [True, True]
    assert Page(html.render(report, {})).all("img") == []


def test_text_is_escaped_wherever_it_comes_from(report):
    attack = '<script>alert("1")</script>&'
    for key in ("title", "command"):
        report[key] = attack
    report["rows"][-1]["name"] = report["rows"][0]["name"] = attack
    report["rows"][0]["notes"] = [attack]
    report["notes"] = report["data"]["notes"] = [attack]
    report["data"]["source"] = attack
    report["environment"][attack] = attack
    report["config"][attack] = attack
    text = html.render(report, IMAGES)
    assert "<script" not in text
    assert attack in "".join(Page(text).text)


def test_unknown_numbers_are_dashes(unknown):
    text = html.render(unknown, IMAGES)
    Page(text)
    assert "None" not in text.split("</style>")[1]
    assert text.count(">–</td>") == len(unknown["rows"]) * sum(len(g.columns) for _, groups in TABLES for g in groups)


@pytest.mark.parametrize("count", [0, 1])
def test_few_rows(report, count):
    Page(html.render(report | {"rows": report["rows"][:count], "notes": []}, IMAGES))
