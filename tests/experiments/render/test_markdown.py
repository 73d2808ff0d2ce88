from __future__ import annotations

import re

from experiments.render import markdown, words


def _tables(text):
    """Each table as its lines, each line as its cells."""
    found = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            found.append([re.split(r"(?<!\\)\|", line.strip("|")) for line in block.splitlines()])
    return found


def test_tables_are_whole(report):
    tables = _tables(markdown.render(report))
    assert len(tables) == 2
    for table in tables:
        assert len({len(line) for line in table}) == 1
        assert [line[0].strip() for line in table[2:]] == [row["name"] for row in report["rows"]]


def test_says_everything(report):
    text = markdown.render(report)
    assert "(front.png)" in text
    assert "(curves.png)" in text
    assert f"```sh\n{report['command']}\n```" in text
    assert "98.61" in text
    assert "- **03-lowrank**: 12% slower at batch 1 than the step before, though its MACs fell by 18%." in text
    assert words.data(report) in text
    assert "- processor: Intel(R) Xeon(R) Processor" in text


def test_names_cannot_break_a_table_or_bring_markup(report):
    report["rows"][0]["name"] = "a|b\n<script>*x*"
    text = markdown.render(report)
    assert r"| a\|b \<script\>\*x\* |" in text
    assert all(len({len(line) for line in table}) == 1 for table in _tables(text))


def test_a_command_cannot_end_its_block(report):
    report["command"] = "echo ```\n# no heading"
    assert "````sh\necho ```\n# no heading\n````" in markdown.render(report)


def test_unknown_numbers_are_dashes(unknown):
    first, second = _tables(markdown.render(unknown))
    for line in (*first[2:], *second[2:]):
        assert {cell.strip() for cell in line[1:]} == {"–"}


def test_no_notes(report):
    for row in report["rows"]:
        row["notes"] = []
    assert "## Notes\n\nNone." in markdown.render(report | {"notes": []})
