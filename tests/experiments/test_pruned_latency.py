from __future__ import annotations

import json

import pytest

from experiments import cli, pruned_latency
from experiments.pruned_latency import LatencyConfig

NET = ["--name", "cifar_resnet8", "--target", "0.5", "--by", "params", "--round_to", "[1,8]", "--image_size", "16"]


def test_a_row_for_each_way_relative_to_the_whole_net(tmp_path, capfd):
    arguments = [*NET, "--seconds", "0.2", "--json", str(tmp_path / "told.json")]
    assert cli.run("pruned_latency", LatencyConfig, pruned_latency.main, arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    head, _, whole, *pruned = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

    timed = [(runtime, batch) for runtime in ("torch", "onnxruntime") for batch in (1, 32)]
    assert head[3:] == [f"{runtime}, batch {batch}" for runtime, batch in timed]
    assert whole == ["whole", "1.000", "1.000", "1.00", "1.00", "1.00", "1.00"]
    assert [row[0] for row in pruned] == ["multiples of 1", "multiples of 8"]
    assert float(pruned[0][1]) == pytest.approx(0.5, abs=0.03)
    assert all(0 < float(cell) < 10 for row in pruned for cell in row[1:])

    kept = json.loads((tmp_path / "told.json").read_text())["rows"]
    for row, figures in zip((whole, *pruned), kept, strict=True):
        assert row[0] == figures["widths"]
        for cell, cost in zip(row[1:3], ("params", "macs"), strict=True):
            assert float(cell) == pytest.approx(figures["kept"][cost], abs=0.0006)
            assert figures["kept"][cost] == figures[cost] / kept[0][cost]
        for cell, (runtime, batch) in zip(row[3:], timed, strict=True):
            share = figures["time"][runtime][f"batch{batch}"]
            assert float(cell) == pytest.approx(share, abs=0.006)
            spent = [each["milliseconds"][runtime][f"batch{batch}"] for each in (figures, kept[0])]
            assert share == spent[0] / spent[1]
