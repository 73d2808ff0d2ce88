"""ExecuTorch where it is installed; where not, that the stage says so. The extra is `mobile` of setup.cfg."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from compress import Mobile, MobileModel, latency, load_artefact, measure, mobile, save_artefact
from compress.card import Told, write_card
from compress.exporter import TOLERANCE
from kd.errors import InputError
from kd.evaluate import evaluate

try:
    mobile.check_installed()
    WHY = ""
except InputError as error:
    WHY = error.allowed
PIPES = {"capture_output": True, "text": True}
installed = pytest.mark.skipif(bool(WHY), reason=WHY)


def test_without_executorch_the_stage_names_the_extra(trained, context, tmp_path, monkeypatch):
    monkeypatch.setattr(mobile, "find_spec", lambda name: None)
    (tmp_path / "model.pte").write_bytes(b"hello")
    for call in (
        lambda: Mobile()(trained, context()),
        lambda: MobileModel(tmp_path / "model.pte")(torch.rand(1, 1, 8, 8)),
    ):
        with pytest.raises(InputError, match=r"ExecuTorch is not installed: pip install 'retort\[mobile\]'"):
            call()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pte"]


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match=r"mobile.calibration: 0: must be 1 or more"):
        Mobile(calibration=0)


@installed
def test_a_float_file_answers_as_torch_does(trained, digits, tmp_path):
    file = Mobile(quantize=False).write(trained, digits, tmp_path / "model.pte")
    x = next(digits.evaluation("test", 10)).x
    with torch.no_grad():
        expected = trained(x)
    assert (file(x) - expected).abs().max() < TOLERANCE * expected.abs().max()
    assert json.loads(file.metadata["classes"]) == [str(digit) for digit in range(10)]


@installed
def test_the_example_of_its_card_needs_executorch_and_none_of_this_library(trained, digits, tmp_path):
    Mobile(quantize=False).write(trained, digits, tmp_path / "model.pte")
    text = write_card(tmp_path, Told("small")).read_text()
    assert "library_name: executorch" in text
    (code,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert len(code.splitlines()) == 5
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, **PIPES
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] in map(str, range(10))


@installed
def test_integers_are_a_quarter_and_as_right(trained, digits, context, tmp_path):
    whole = Mobile(quantize=False).write(trained, digits, tmp_path / "float.pte")
    file, report = Mobile(calibration=64)(trained, context())
    assert report.name == "mobile"
    assert file.path.stat().st_size < 0.5 * whole.path.stat().st_size
    expected = evaluate(trained, digits.evaluation("test")).top1
    assert evaluate(file, digits.evaluation("test")).top1 == pytest.approx(expected, abs=2)
    assert report.details["top1_after"] == evaluate(file, digits.evaluation("val")).top1

    save_artefact(file, tmp_path / "kept")
    loaded = load_artefact(tmp_path / "kept")
    assert measure(loaded, (1, 8, 8)).macs == measure(trained, (1, 8, 8)).macs
    assert latency({"it": loaded}, (1, 8, 8), (1,), repeats=1, seconds=0)["it"]["runtime"] == "executorch"
    content = loaded.path.read_bytes()
    for place in (0, 100, len(content) // 2, len(content) - 1):
        altered = bytearray(content)
        altered[place] ^= 1
        loaded.path.write_bytes(altered)
        with pytest.raises(InputError, match="truncated or altered"):
            load_artefact(tmp_path / "kept")
