from __future__ import annotations

import pytest

from experiments.coding_ratio import DENSITIES, RatioConfig, compare
from kd.errors import InputError

EVEN, SPREAD = "8 and 4 bits", "8 and 4 bits, spread"


def cells(lines):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_a_row_for_each_way_and_one_for_each_layer():
    densities = (80, 30, 30, 20, 25, 5)
    told = compare(RatioConfig("cifar_vgg8", densities=densities, ways=(EVEN, SPREAD)))
    ways, what, layers = told.split("\n\n")
    head, _, even, spread = cells(ways.splitlines())

    assert head[3:] == ["zstd, bytes", "ratio", "range, bytes", "ratio", "ratio of the bound"]
    assert [even[0], spread[0]] == [EVEN, SPREAD]
    assert float(spread[1]) <= float(even[1]) < 1
    sizes = [[int(row[column].replace(",", "")) for column in (3, 5)] for row in (even, spread)]
    assert sizes[1][0] < sizes[0][0]
    for row, (zstd, coded) in zip((even, spread), sizes, strict=True):
        assert coded < 1.001 * zstd
        small, smaller, bound = (float(row[column].rstrip("×")) for column in (4, 6, 7))
        assert 4 < small <= smaller < bound < 1.05 * small
    assert what == f"The layers with {SPREAD}, by range:"
    rows = cells(layers.splitlines())[2:]
    assert [float(row[2]) for row in rows] == pytest.approx(densities, abs=1)
    told_bytes = sum(int(row[column].replace(",", "")) for row in rows for column in (6, 7))
    assert 0 < sizes[1][1] - told_bytes < 20_000


def test_the_published_densities_are_those_of_the_layers():
    assert {name: len(found) for name, found in DENSITIES.items()} == {"alexnet": 8, "vgg16": 16}


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("name", {"name": "resnet18"}),
        ("ways", {"ways": ("nine bits",)}),
        ("ways", {"ways": ()}),
        ("coders", {"coders": ()}),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, settings):
    with pytest.raises(InputError) as refused:
        RatioConfig(**settings)
    assert refused.value.field == field


def test_densities_of_another_net_are_refused():
    with pytest.raises(InputError, match=r"densities: \(50,\): cifar_resnet8 has 10 convolutions and linear layers"):
        compare(RatioConfig("cifar_resnet8", densities=(50,)))
