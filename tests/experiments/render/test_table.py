import io

import pytest
from rich.console import Console

from experiments.render import table


def _lines(report, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table.render(report))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [100, 80])
def test_every_row_is_one_line_with_its_values(report, width):
    lines = _lines(report, width)
    assert max(map(len, lines)) <= width
    for row in report["rows"]:
        assert any(line.startswith(f"{row['name']} ") and f"{row['top1_test']:.2f}" in line for line in lines)


def test_below_the_table_stand_headline_and_notes(report):
    text = " ".join(" ".join(_lines(report, 100)).split())
    assert "33.3× smaller file" in text
    assert "03-lowrank: 14% slower at batch 1 than 02-recover" in text


def test_narrow_terminals_long_names_and_unknown_values(report, sparse):
    report["rows"][0]["name"] = "a-very-long-name-" * 4
    for width in (100, 80, 40):
        assert max(map(len, _lines(report, width))) <= width
    assert any("–" in line for line in _lines(sparse, 80))


def test_names_are_no_markup(report):
    report["rows"][0]["name"] = "[red]a[/x]"
    assert any("[red]a[/x]" in line for line in _lines(report, 120))
