from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from compress import Export, OnnxModel, Quantize, load_artefact
from compress.export import convert
from compress.onnx_model import write
from compress.quantize.integer import Ready
from compress.quantize.quantize import _best, _notes
from kd.errors import InputError
from kd.evaluate import evaluate


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch):
    monkeypatch.setattr("compress.quantize.quantize._SECONDS", 0.2)


def test_static_keeps_accuracy_and_sheds_bytes(exported, context, digits, tmp_path, capfd):
    small, report = Quantize("static")(exported, context())
    assert isinstance(small, OnnxModel)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert load_artefact(tmp_path).path == small.path

    before, after = report.details["candidates"]["float"], report.details["candidates"]["static"]
    assert before["top1_val"] == evaluate(exported, digits.evaluation("val")).top1 > 80
    assert after["top1_val"] == evaluate(small, digits.evaluation("val")).top1 > before["top1_val"] - 2
    assert after["file_bytes"] == small.path.stat().st_size < 0.45 * before["file_bytes"]
    assert before["integer_convolutions"] == 0
    assert after["integer_convolutions"] == after["convolutions"] == before["convolutions"] > 0
    assert before["latency_ms"].keys() == {"runtime", "threads", "batch1", "batch32"}
    assert json.loads(json.dumps(report.details)) == report.details
    assert capfd.readouterr().out == ""


def test_auto_reports_all_and_spares_the_slow_one(trained, context):
    """A module is exported first; dynamic convolutions are many times slower and hardly smaller."""
    small, report = Quantize()(trained, context(calibration=32))
    assert set(report.details["candidates"]) == {"float", "static", "dynamic"}
    assert report.details["chosen"] == _best(report.details["candidates"], within=1.0) != "dynamic"
    assert report.details["calibration"] == 32
    assert small.macs > 0


def test_auto_spares_the_worst_layers_where_static_costs_too_much(trained, context):
    """Weights for a channel that is always zero leave few integers to the others."""
    model = copy.deepcopy(trained)
    blocks = [model.net.get_submodule(f"layer{stage}.0") for stage in (1, 2)]
    with torch.no_grad():
        for block in blocks:
            block.bn1.weight[0], block.bn1.bias[0] = 0, 0
            block.conv2.weight[:, 0] = 300
    _, report = Quantize()(model, context())
    scores, kept = report.details["candidates"], report.details["kept_float"]
    assert scores["float"]["top1_val"] > 70
    assert scores["static"]["top1_val"] < scores["float"]["top1_val"] - 20
    assert scores["mixed"]["top1_val"] > scores["float"]["top1_val"] - 2
    assert scores["static"]["integer_convolutions"] - scores["mixed"]["integer_convolutions"] == len(kept) == 2
    assert report.details["chosen"] not in ("static", "dynamic")


def test_auto_goes_on_without_a_form_that_cannot_be_had_but_a_wish_for_it_is_refused(
    exported, context, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise ValueError("not supported yet")

    monkeypatch.setattr("onnxruntime.quantization.qdq_quantizer.QDQQuantizer", fail)
    small, report = Quantize(within=100)(exported, context())
    assert set(report.details["candidates"]) == {"float", "dynamic"}
    assert report.notes[0].startswith("no static int8 file: onnxruntime cannot")
    assert small.path.exists()
    with pytest.raises(InputError, match=r"quantize\.mode: static: .*not supported yet"):
        Quantize("static")(exported, context(folder=tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    small, _ = Quantize("dynamic")(exported, context())
    with pytest.raises(InputError, match="quantised already"):
        Quantize()(small, context(folder=tmp_path / "other"))


def test_calibration_sees_training_images_only(exported, context, digits, monkeypatch):
    class Closed:
        labels = digits.test.labels

        def __len__(self) -> int:
            return len(self.labels)

        def read(self, batches):
            raise AssertionError("the test split was read")

    reads: list[torch.Tensor] = []

    class Spy(Ready):
        def __init__(self, model, images, scheme):
            reads.append(images)
            super().__init__(model, images, scheme)

    monkeypatch.setattr("compress.quantize.quantize.Ready", Spy)
    Quantize("static")(exported, context(data=replace(digits, test=Closed())))
    (seen,) = reads
    assert torch.equal(seen, context().images())


def score(top1: float, size: int, ms: float) -> dict:
    return {
        "top1_val": top1,
        "file_bytes": size,
        "latency_ms": {"batch1": {"p50": ms}, "batch32": {"p50": 10 * ms}},
    }


@pytest.mark.parametrize(
    ("static", "dynamic", "chosen"),
    [
        (score(89.5, 280, 0.5), score(89.9, 270, 0.9), "static"),  # as small, and faster
        (score(89.5, 280, 0.5), score(89.9, 200, 0.9), "dynamic"),  # smaller by more than a quarter
        (score(70.0, 280, 0.5), score(89.0, 270, 1.05), "dynamic"),  # the only one that is good enough
        (score(88.9, 280, 0.5), score(88.9, 270, 0.9), "float"),  # none is
        (score(89.5, 280, 1.2), score(89.9, 200, 3.0), "float"),  # both are slower
    ],
)
def test_the_smallest_that_is_good_and_fast_enough_is_chosen(static, dynamic, chosen):
    assert _best({"float": score(90.0, 1000, 1.0), "static": static, "dynamic": dynamic}, within=1.0) == chosen


def test_the_worst_layers_stay_in_float(exported, context, tmp_path):
    whole, plain = Quantize("static")(exported, context())
    small, report = Quantize("static", keep_float=2)(exported, context(folder=tmp_path / "kept"))
    before, after = (each.details["candidates"]["static"] for each in (plain, report))
    assert len(report.details["kept_float"]) == 2
    assert list(report.details["kept_float"].values()) == sorted(report.details["kept_float"].values(), reverse=True)
    assert before["integer_convolutions"] - after["integer_convolutions"] in (1, 2)
    assert any("in float" in note for note in report.notes)
    assert not plain.details.get("kept_float")
    assert small.path.stat().st_size > whole.path.stat().st_size


def test_what_became_worse_is_told_in_words(monkeypatch):
    monkeypatch.setattr("compress.quantize.quantize.x86", lambda: False)
    scores = {"float": score(90.0, 1000, 1.0), "static": score(89.25, 1100, 1.2)}
    assert _notes(scores, "static", 1.0, 64) == (
        "int8 (static) costs 0.75 points of accuracy on validation",
        "int8 (static) is slower than float here: x1.20 at batch 1",
        "int8 (static) is slower than float here: x1.20 at batch 32",
        "int8 (static) is larger than float: 1100 bytes, not 1000",
    )
    assert _notes(scores | {"static": score(90.0, 300, 0.9)}, "static", 1.0, 64) == ()
    assert "kept in float" in _notes(scores, "float", 1.0, 64)[0]
    monkeypatch.setattr("compress.quantize.quantize.x86", lambda: True)
    assert "VNNI" in _notes(scores, "static", 1.0, most=127)[-1]
    assert "VNNI" not in _notes(scores, "static", 1.0, most=64)[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "float"}, r"quantize.mode: float: must be one of auto, static, dynamic"),
        ({"calibrate": "kl"}, r"quantize.calibrate: kl: must be one of minmax, percentile, entropy, mse"),
        ({"bits": 1}, r"quantize.bits: 1: must be 2 to 8"),
        ({"bits": 9}, r"quantize.bits: 9: must be 2 to 8"),
        ({"rounding": "up"}, r"quantize.rounding: up: must be one of nearest, learned"),
        ({"keep_float": -1}, r"quantize.keep_float: -1: must be 0 or more"),
        ({"keep_float": 1, "mode": "dynamic"}, r"quantize.keep_float: 1: .* 0 in dynamic files"),
        ({"within": -1.0}, r"quantize.within: -1.0: must be 0 or above"),
        ({"within": float("nan")}, r"quantize.within: nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Quantize(**settings)


def test_what_cannot_be_quantised_is_refused_and_nothing_written(exported, context, digits, tmp_path):
    folder = tmp_path / "stage"
    with pytest.raises(InputError, match=r"calibration: 0"):
        Quantize()(exported, context(folder=folder, calibration=0))

    class Sick(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)).repeat(1, 10) / 0

    sick = write(convert(Sick(), torch.rand(2, 1, 8, 8), 18), tmp_path / "sick.onnx")
    with pytest.raises(InputError, match=r"sick.onnx: gives NaN or infinite logits"):
        Quantize()(sick, context(folder=folder))
    few = write(convert(torch.nn.Flatten(), torch.rand(2, 1, 8, 8), 18), tmp_path / "few.onnx")
    with pytest.raises(InputError, match=r"few.onnx: knows 64 classes, the data has 10"):
        Quantize()(few, context(folder=folder))
    wide = write(convert(torch.nn.Conv2d(3, 10, 8).eval(), torch.rand(2, 3, 8, 8), 18), tmp_path / "wide.onnx")
    with pytest.raises(InputError, match=r"images: \(1, 8, 8\): wide.onnx takes \(3, 8, 8\)"):
        Quantize()(wide, context(folder=folder))
    assert not folder.exists()


def test_auto_goes_on_where_a_mask_is_infinite(context, digits, tmp_path):
    class Masks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            return self.head(x.masked_fill(torch.arange(64) > 40, -torch.inf).softmax(1) * 64)

    exported = Export().write(Masks().eval(), digits, tmp_path / "float.onnx")
    _, report = Quantize(within=100)(exported, context())
    assert set(report.details["candidates"]) == {"float", "dynamic"}
    assert any(re.match("no static int8 file: .* is infinite or NaN", note) for note in report.notes)
    with pytest.raises(InputError, match="is infinite or NaN"):
        Quantize("static")(exported, context())


def test_weights_that_keep_eight_bits_are_told(context, digits, tmp_path):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.mix(self.mix(x.flatten(1)).relu()))

    exported = Export().write(Twice().eval(), digits, tmp_path / "float.onnx")
    for bits, told in ((4, 1), (8, 0)):
        _, report = Quantize("static", bits=bits)(exported, context())
        notes = [note for note in report.notes if note.startswith("weights of 8 bits all the same: ")]
        assert len(notes) == told
