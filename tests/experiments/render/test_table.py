from __future__ import annotations

import io

import pytest
from rich.console import Console

from experiments.render import table


def _printed(report, width):
    target = io.StringIO()
    Console(file=target, width=width, color_system=None).print(table.render(report))
    return target.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_off(report, width):
    text = _printed(report, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    lines = text.splitlines()
    for row in report["rows"]:
        (line,) = [line for line in lines if line.strip().startswith(f"{row['name']} ")]
        assert f"{row['top1_test']:.2f}" in line
    assert "62.0 kB" in text


def test_names_are_no_markup(report):
    report["rows"][0]["name"] = "[red]x"
    assert "[red]x" in _printed(report, 100)


def test_unknown_numbers_are_dashes(unknown):
    (line,) = [line for line in _printed(unknown, 100).splitlines() if line.strip().startswith("teacher")]
    assert line.split()[1:] == ["–"] * len(table.COLUMNS)
