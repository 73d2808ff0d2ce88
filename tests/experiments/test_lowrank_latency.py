from __future__ import annotations

import json
from statistics import median

import pytest

from experiments import cli, lowrank_latency
from experiments.lowrank_latency import LatencyConfig
from kd.errors import InputError

NET = ["--name", "cifar_resnet8", "--method", "spatial", "--dense", "0.8", "--macs", "0.6", "--image_size", "16"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_fully_connected_layers_and_convolutions_are_factorised_and_timed(tmp_path, capfd):
    arguments = [*NET, "--rounds", "2", "--seconds", "0.1", "--json", str(tmp_path / "told.json")]
    assert cli.run("lowrank_latency", LatencyConfig, lowrank_latency.main, arguments) == 0
    head, _, whole, factors = map(cells, capfd.readouterr().out.splitlines())

    assert head[3:] == ["faster on torch", "faster on onnxruntime"]
    assert whole[0] == "whole"
    assert "(1.00×)" in whole[1]
    assert whole[3:] == ["1.00× (1.00 to 1.00)"] * 2
    assert factors[0] == "factors"
    fewer = [float(cell.split("(")[1].rstrip("×)")) for cell in factors[1:3]]
    assert fewer[0] > 1.2
    assert fewer[1] > 1.6
    for cell in factors[3:]:
        low, middle, high = (float(cell.replace("×", "").replace(")", "").split()[i].lstrip("(")) for i in (1, 0, 3))
        assert 0.1 < low <= middle <= high < 30

    kept = json.loads((tmp_path / "told.json").read_text())["rows"]
    for row, figures in zip((whole, factors), kept, strict=True):
        assert row[0] == figures["net"]
        for cell, cost in zip(row[1:3], ("params", "macs"), strict=True):
            assert cell == f"{figures[cost] / 1e6:.2f} M ({kept[0][cost] / figures[cost]:.2f}×)"
            assert figures["fewer"][cost] == kept[0][cost] / figures[cost]
        for cell, runtime in zip(row[3:], ("torch", "onnxruntime"), strict=True):
            rounds = zip(*(each["milliseconds"][runtime] for each in (kept[0], figures)), strict=True)
            faster = figures["faster"][runtime]
            assert faster == [before / after for before, after in rounds]
            assert len(faster) == 2
            assert cell == f"{median(faster):.2f}× ({min(faster):.2f} to {max(faster):.2f})"


def test_the_steps_are_svd_of_what_is_dense_and_then_the_method():
    first, second = LatencyConfig(method="tucker", dense=0.3, macs=0.4).stages

    assert (first.method, first.by, first.target) == ("svd", "params", 0.3)
    assert (second.method, second.by, second.target) == ("tucker", "macs", 0.4)


def test_no_rounds_are_refused():
    with pytest.raises(InputError, match="rounds"):
        LatencyConfig(rounds=0)
