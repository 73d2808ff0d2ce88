from __future__ import annotations

import pytest

from experiments.lowrank_latency import LatencyConfig, compare
from kd.errors import InputError


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_fully_connected_layers_and_convolutions_are_factorised_and_timed():
    config = LatencyConfig("cifar_resnet8", "spatial", 0.8, 0.6, image_size=16, rounds=2, seconds=0.1)
    head, _, whole, factors = map(cells, compare(config).splitlines())

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


def test_the_steps_are_svd_of_what_is_dense_and_then_the_method():
    first, second = LatencyConfig(method="tucker", dense=0.3, macs=0.4).stages

    assert (first.method, first.by, first.target) == ("svd", "params", 0.3)
    assert (second.method, second.by, second.target) == ("tucker", "macs", 0.4)


def test_no_rounds_are_refused():
    with pytest.raises(InputError, match="rounds"):
        LatencyConfig(rounds=0)
