from __future__ import annotations

import copy
import sys

import pytest
import torch

from compress import Cluster, CodedModel, Encode, Sparsify, load_artefact, measure, save_artefact
from kd.errors import InputError
from kd.evaluate import evaluate


@pytest.fixture
def clustered(trained, context):
    return Cluster(4, 4)(Sparsify(0.8)(trained, context())[0], context())[0]


@pytest.mark.parametrize("coder", ["zstd", "range"])
def test_the_file_is_the_artefact(coder, clustered, context, digits, tmp_path):
    made, report = Encode(coder)(clustered, context())
    assert isinstance(made, CodedModel)
    assert made.path == tmp_path / "model.coded"
    size = made.path.stat().st_size
    cost, before = measure(made, (1, 8, 8)), measure(clustered, (1, 8, 8))
    assert cost.file_bytes == size == report.details["file_bytes"]
    assert (cost.params, cost.nonzero, cost.macs) == (before.params, before.nonzero, before.macs)
    views = digits.evaluation("val")
    assert evaluate(made, views) == evaluate(clustered, digits.evaluation("val"))
    save_artefact(made, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.coded"]
    save_artefact(made, tmp_path / "elsewhere")
    loaded = load_artefact(tmp_path / "elsewhere")
    assert isinstance(loaded, CodedModel)
    assert loaded.path == tmp_path / "elsewhere/model.coded"
    assert torch.equal(loaded.classifier.net.linear.weight, clustered.net.linear.weight)


def test_what_the_report_says(clustered, trained, context):
    _, report = Encode()(clustered, context())
    details = report.details
    plain = sum(value.numel() * value.element_size() for value in clustered.net.state_dict().values())
    assert details["plain_bytes"] == plain
    assert details["ratio"] == pytest.approx(plain / details["file_bytes"])
    assert details["ratio"] < details["bound_ratio"] < 1.2 * details["ratio"]
    assert "shrinks the file, not memory or latency" in report.notes[0]
    assert len(report.notes) == 1
    layer = details["layers"]["layer3.0.conv2.weight"]
    weight = clustered.net.layer3[0].conv2.weight
    assert layer["entries"] == weight.numel()
    assert layer["density"] == float((weight != 0).float().mean())
    assert layer["clusters"] == 16
    assert layer["positions_bytes"] < weight.numel() / 8
    assert layer["values_bytes"] < weight.count_nonzero() / 2 + 80
    assert details["layers"].keys() == {f"{path}.weight" for path in details["layers"] for path in [path[:-7]]}
    _, report = Encode()(trained, context())
    assert report.notes[1].startswith("No layer is clustered")


def test_settings_and_models_that_cannot_be_are_refused(clustered, exported, context, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"encode\.coder: huffman: must be one of zstd, range"):
        Encode("huffman")
    with pytest.raises(InputError, match="encode: must come before export, and once"):
        Encode()(exported, context())
    coded, _ = Encode()(clustered, context())
    with pytest.raises(InputError, match="encode: must come before export, and once"):
        Encode()(coded, context())
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(InputError, match="needs the extra"):
        Encode("range")(clustered, context(folder=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_read_again_leaves_no_file(clustered, context, tmp_path):
    model = copy.deepcopy(clustered)
    model.net.register_buffer("mine", torch.arange(5))
    with pytest.raises(InputError, match="has no mine"):
        Encode()(model, context(folder=tmp_path / "coded"))
    assert not list((tmp_path / "coded").iterdir())
