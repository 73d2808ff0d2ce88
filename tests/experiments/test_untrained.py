"""What is measured of untrained nets is printed and, where that is wanted, kept; whether it can be is seen before."""

import json
import sys

import pytest
import torch

from experiments import cli, coding_ratio, lowrank_latency, pruned_latency, quantized_size, untrained
from kd.checkpoint import load_json
from kd.errors import InputError
from students import zoo

COMMANDS = {
    "coding_ratio": (coding_ratio, coding_ratio.RatioConfig),
    "lowrank_latency": (lowrank_latency, lowrank_latency.LatencyConfig),
    "pruned_latency": (pruned_latency, pruned_latency.LatencyConfig),
    "quantized_size": (quantized_size, quantized_size.SizeConfig),
}
ROWS = [{"net": "whole", "time": 1.5}]


def test_a_net_is_a_function_of_its_seed_and_as_large_as_published():
    first, again, other = (untrained.build("cifar_resnet8", 7, seed=seed).state_dict() for seed in (0, 0, 1))

    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["net.conv1.weight"], other["net.conv1.weight"])
    blueprints = [untrained.build("cifar_resnet8", 7, size).blueprint for size in (None, 16)]
    assert [plan.image_size for plan in blueprints] == [zoo.published("cifar_resnet8").image_size, 16]
    assert [plan.num_classes for plan in blueprints] == [7, 7]


def test_a_stage_sees_the_images(tmp_path):
    x = untrained.images(3, 8)
    seen = untrained.context(x, tmp_path).images()  # in bytes, in an order of its own
    order = [int((x - image).abs().mean((1, 2, 3)).argmin()) for image in seen]
    assert sorted(order) == [0, 1, 2]
    assert torch.equal((255 * seen).round(), (255 * x[order]).floor())


@pytest.mark.parametrize("place", ["told.json", "deep/below/told.json"])
def test_the_figures_are_kept_with_the_command(place, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["quantized_size", "--json", place])
    monkeypatch.chdir(tmp_path)
    untrained.tell("quantized_size", place, lambda: ROWS, lambda rows: f"{rows[0]['time']} ms")

    assert capfd.readouterr().out == "1.5 ms\n"
    command = f"python -m experiments.quantized_size --json {place}"
    assert load_json(tmp_path / place) == {"command": command, "rows": ROWS}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["told.json"]


def test_what_was_kept_before_stays_until_there_is_more(tmp_path):
    (tmp_path / "told.json").write_text("before")

    def measure():
        assert (tmp_path / "told.json").read_text() == "before"
        return ROWS

    untrained.tell("quantized_size", str(tmp_path / "told.json"), measure, str)
    assert json.loads((tmp_path / "told.json").read_text())["rows"] == ROWS


def test_nothing_is_kept_unless_it_is_wanted(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    untrained.tell("quantized_size", None, lambda: ROWS, lambda rows: "a table")
    assert capfd.readouterr().out == "a table\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file/told.json", "cannot be written: Not a directory"),
        (".", "is no file"),
        ("", "is no file"),
        ("x" * 250, "cannot be written: File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    name, place, why, tmp_path, capfd, monkeypatch
):
    module, config = COMMANDS[name]
    monkeypatch.setattr(module, "measure", lambda config: pytest.fail("measured"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert cli.run(name, config, module.main, ["--json", place]) == 2
    told = capfd.readouterr()
    assert told.err == " ".join(f"error: json: {place}: {why}".split()) + "\n"
    assert told.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_device_is_not_replaced():
    with pytest.raises(InputError, match="json: /dev/null: is no file"):
        cli.writable("json", "/dev/null")
