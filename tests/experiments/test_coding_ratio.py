from __future__ import annotations

import json

import pytest

from experiments import cli, coding_ratio
from experiments.coding_ratio import DENSITIES, RatioConfig, measure
from kd.errors import InputError

EVEN, SPREAD = "8 and 4 bits", "8 and 4 bits, spread"


def cells(lines):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_a_row_for_each_way_and_one_for_each_layer(tmp_path, capfd):
    densities = (80, 30, 30, 20, 25, 5)
    arguments = ["--name", "cifar_vgg8", "--densities", str(list(densities)), "--ways", json.dumps([EVEN, SPREAD])]
    arguments += ["--json", str(tmp_path / "told.json")]
    assert cli.run("coding_ratio", RatioConfig, coding_ratio.main, arguments) == 0
    ways, what, layers = capfd.readouterr().out.split("\n\n")
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

    kept = json.loads((tmp_path / "told.json").read_text())["rows"]
    for row, figures in zip((even, spread), kept, strict=True):
        assert row[0] == figures["clusters"]
        assert row[1:3] == [f"{100 * figures['error'][of]:.2f}" for of in ("weights", "logits")]
        files = [figures["files"][coder] for coder in ("zstd", "range")]
        assert row[3:7] == [cell for file in files for cell in (f"{file['file_bytes']:,}", f"{file['ratio']:.2f}×")]
        assert row[7] == f"{files[1]['bound_ratio']:.2f}×"
    for row, layer in zip(rows, kept[1]["files"]["range"]["layers"], strict=True):
        found = layer["positions_bytes"] + layer["values_bytes"]
        assert row[:4] == [
            layer["layer"],
            f"{layer['entries']:,}",
            f"{100 * layer['density']:.0f}",
            f"{layer['clusters']}",
        ]
        assert row[4:6] == [f"{layer['bits']:.2f}", f"{100 * layer['error']:.3f}"]
        assert row[6:9] == [f"{layer[part]:,.0f}" for part in ("positions_bytes", "values_bytes", "above_bound_bytes")]
        assert layer["above_bound_bytes"] == found - layer["bound_bytes"]
        assert row[9] == f"{layer['ratio']:.1f}×"
        assert layer["ratio"] == 4 * layer["entries"] / found


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
        measure(RatioConfig("cifar_resnet8", densities=(50,)))
