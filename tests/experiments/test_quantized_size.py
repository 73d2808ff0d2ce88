from __future__ import annotations

import json

import pytest

from experiments import cli, quantized_size
from experiments.quantized_size import FORMS, SizeConfig

NET = ["--name", "cifar_resnet8", "--classes", "7", "--image_size", "16"]


def test_a_row_for_each_form_relative_to_float(tmp_path, capfd):
    arguments = [*NET, "--seconds", "0.2", "--json", str(tmp_path / "told.json")]
    assert cli.run("quantized_size", SizeConfig, quantized_size.main, arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    head, _, whole, *forms = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

    assert head[1:4] == ["MB", "MiB", "integer convolutions"]
    assert whole[0] == "float"
    assert whole[3:] == ["0 of 9", "0.00", "1.00", "1.00"]
    assert [row[0] for row in forms] == [*FORMS]
    for row in forms:
        assert row[3] == "9 of 9"
        assert float(row[1]) < 0.32 * float(whole[1])
        assert float(row[1]) == pytest.approx(float(row[2]) * 2**20 / 1e6, abs=0.002)
        assert 0 < float(row[4]) < 0.5

    kept = json.loads((tmp_path / "told.json").read_text())["rows"]
    assert len(kept) == 1 + len(FORMS)
    for row, figures in zip((whole, *forms), kept, strict=True):
        assert row[0] == figures["file"]
        assert float(row[1]) == pytest.approx(figures["bytes"] / 1e6, abs=0.0006)
        assert row[3] == f"{figures['integer']} of {figures['convolutions']}"
        assert float(row[4]) == pytest.approx(figures["error"], abs=0.006)
        for cell, batch in zip(row[5:], ("batch1", "batch8"), strict=True):
            assert float(cell) == pytest.approx(figures["time"][batch], abs=0.006)
            assert figures["time"][batch] == figures["milliseconds"][batch] / kept[0]["milliseconds"][batch]
