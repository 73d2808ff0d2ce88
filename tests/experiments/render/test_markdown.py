import re

from experiments.render import markdown


def _tables(text):
    return [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]


def _cells(line):
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


def test_tables_have_as_many_cells_in_every_line(report):
    tables = _tables(markdown.render(report))
    assert len(tables) == 4
    for table in tables:
        assert {len(_cells(line)) for line in table} == {len(_cells(table[0]))}


def test_every_row_stands_in_every_table_of_rows(report):
    for table in _tables(markdown.render(report))[:3]:
        assert [_cells(line)[0].strip() for line in table[2:]] == [row["name"] for row in report["rows"]]


def test_values_stand_in_their_columns(report):
    accuracy, latency, ratios, _ = _tables(markdown.render(report))
    deployed = {
        name.strip(): cell.strip()
        for table in (accuracy, latency, ratios)
        for name, cell in zip(_cells(table[0]), _cells(table[-1]), strict=True)
    }
    assert deployed["top-1 val, %"] == "96.88"
    assert deployed["agreement, %"] == "96.94"
    assert deployed["non-zero"] == "35.0 k"
    assert deployed["batch 1 p95, ms"] == "0.140"
    assert deployed["batch 32 p50, ms"] == "0.920"
    assert deployed["faster at batch 32"] == "10.1×"
    assert deployed["wall time"] == "6.2 s"


def test_what_would_be_markup_is_text(report):
    report["rows"][0]["name"] = "a|b *c* <script>\n`d` [e](f)"
    text = markdown.render(report)
    assert r"| a\|b \*c\* \<script\> \`d\` \[e\](f) |" in text
    assert "<script>" not in text.replace(r"\<script\>", "")
    for table in _tables(text):
        assert {len(_cells(line)) for line in table} == {len(_cells(table[0]))}


def test_the_command_is_whole_whatever_is_in_it(report):
    report["command"] = "python -m x --note '```'"
    assert "````sh\npython -m x --note '```'\n````" in markdown.render(report)


def test_notes_plots_and_the_command_are_there(report):
    text = markdown.render(report)
    for row in report["rows"]:
        for note in row["notes"]:
            assert f"- **{row['name']}**: {note}" in text
    assert "- A small data set: one test image is 0.28 points." in text
    assert "(front.png)" in text
    assert "(curves.png)" in text
    assert report["command"] in text


def test_what_is_unknown_is_a_dash_and_what_is_empty_is_left_out(sparse):
    text = markdown.render(sparse)
    assert set(map(str.strip, _cells(_tables(text)[0][2])[1:])) == {"–"}
    assert ".png" not in text
    assert "None" not in text
