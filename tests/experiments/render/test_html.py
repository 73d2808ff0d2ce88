import re
from html.parser import HTMLParser

import pytest

from experiments.render import html

IMAGES = {"front.png": b"\x89PNG front", "curves.png": b"\x89PNG curves"}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Fails on a tag that is closed in the wrong place; collects cells, links and what has no text instead."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.tables, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def test_the_page_is_well_formed_and_has_every_row(report):
    page = Page(html.render(report, IMAGES))
    steps, ratios = page.tables
    names = [row["name"] for row in report["rows"]]
    for table, heads in ((steps, 2), (ratios, 1)):
        assert [line[0].removesuffix("deployed") for line in table[heads:]] == names
        assert len({len(line) for line in table[heads:]}) == 1
    assert len(steps[1]) + 1 == len(steps[2])
    values = dict(zip(steps[1], steps[-1][1:], strict=True))
    assert (values["top-1 val"], values["file"], values["wall time"]) == ("96.88", "74.3 kB", "6.2 s")


def test_only_the_last_row_is_marked_as_deployed(report):
    steps = Page(html.render(report, IMAGES)).tables[0]
    assert [line[0].endswith("deployed") for line in steps[2:]] == [False] * (len(steps) - 3) + [True]


def test_nothing_is_requested_and_nothing_runs(report):
    text = html.render(report, IMAGES)
    page = Page(text)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\(|javascript:", text)
    for tag, attributes in page.attributes:
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "img" or (attributes["src"].startswith("data:image/png;base64,") and attributes["alt"])


@pytest.mark.parametrize(
    "put",
    [
        lambda report, text: report.update(title=text),
        lambda report, text: report.update(command=text),
        lambda report, text: report["rows"][-1].update(name=text),
        lambda report, text: report["rows"][0].update(notes=[text]),
        lambda report, text: report["data"].update(source=text),
        lambda report, text: report["environment"].update(processor=text),
        lambda report, text: report["config"].update(seed=text),
    ],
)
def test_text_is_escaped_wherever_it_stands(report, put):
    attack = """<script>alert("1")</script>'"&"""
    put(report, attack)
    text = html.render(report, IMAGES)
    assert "<script" not in text
    assert "script" not in Page(text).tags
    assert 'alert("1")' in "".join(Page(text).text)


def test_a_value_below_the_teachers_is_marked(report):
    assert 'class="worse"' not in html.render(report, IMAGES)
    report["rows"][-1]["ratios"]["latency_batch1"] = 0.5
    text = html.render(report, IMAGES)
    assert '<td class="worse">0.500×' in text
    assert "slower at batch 1" in "".join(Page(text).text)


def test_what_is_unknown_is_a_dash_and_what_is_empty_is_left_out(sparse):
    text = html.render(sparse, {})
    page = Page(text)
    assert set(page.tables[0][2][1:]) == {"–"}
    assert "img" not in page.tags
    assert "None" not in "".join(page.text)


def test_a_report_without_a_teacher_or_rows(report):
    for rows in ([], report["rows"][2:], report["rows"][:1]):
        Page(html.render(report | {"rows": rows}, IMAGES))
