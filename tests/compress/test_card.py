from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from compress import TorchExport, save_artefact
from compress.card import Told, write_card
from kd.errors import InputError

ROOT = Path(__file__).parents[2]
TOLD = Told("digits *small*", "apache-2.0", "digits", {"test": 96.21}, {"Figures": "| a | b |\n| -- | -- |\n| 1 | 2 |"})


def run(folder, *, without=(), path=()):
    """The example of a card, run beside its artefact in a process that cannot import the modules `without`."""
    (code,) = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) == 5
    stubs = folder / "stubs"
    stubs.mkdir()
    for name in without:
        (stubs / f"{name}.py").write_text(f"raise ImportError('{name} is not to be had')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (stubs, *path))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


OURS = ("kd", "students", "teachers", "compress", "search", "experiments")


def test_the_example_of_an_onnx_file_needs_onnxruntime_and_numpy_alone(exported, tmp_path):
    save_artefact(exported, tmp_path)
    write_card(tmp_path, TOLD)
    done = run(tmp_path, without=("torch", "onnx", "timm", *OURS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in map(str, range(10))


def test_the_example_of_a_torch_file_needs_torch_alone(trained, digits, tmp_path):
    TorchExport().write(trained, digits, tmp_path / "model.pt2")
    write_card(tmp_path, TOLD)
    done = run(tmp_path, without=("onnxruntime", "timm", *OURS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in map(str, range(10))


def test_the_example_of_a_folder_runs_with_this_library(trained, tmp_path):
    save_artefact(trained, tmp_path)
    write_card(tmp_path, TOLD)
    done = run(tmp_path, path=(ROOT,))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"tensor\(\[\d\]\)", done.stdout.strip())


def test_the_front_matter_is_what_the_hub_reads(exported, tmp_path):
    save_artefact(exported, tmp_path)
    data = ModelCard(write_card(tmp_path, TOLD).read_text()).data  # huggingface_hub reads it back
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "onnx", "image-classification")
    assert {"image-classification", "retort", "onnxruntime"} <= set(data.tags)
    assert data.model_name == TOLD.title
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type) == ("digits", "test", "accuracy")
    assert result.metric_value == pytest.approx(0.9621)


def test_the_text_tells_what_it_was_told_and_what_the_file_knows(exported, trained, tmp_path):
    save_artefact(exported, tmp_path)
    text = write_card(tmp_path, TOLD, tmp_path / "elsewhere").read_text()
    assert not (tmp_path / "README.md").exists()
    assert "\n# digits \\*small\\*\n" in text
    assert "grey images of 8 × 8 pixels into 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in text
    assert "`model.onnx`, for onnxruntime" in text
    assert "## Figures\n\n| a | b |" in text
    assert "No accuracy was measured" not in text
    save_artefact(trained, tmp_path / "folder")
    bare = write_card(tmp_path / "folder", Told("bare")).read_text()
    assert "No accuracy was measured" in bare
    assert "license: unknown" in bare
    assert ModelCard(bare).data.eval_results is None


def test_what_is_no_artefact_or_was_altered_gets_no_card(exported, tmp_path):
    with pytest.raises(InputError, match="holds neither"):
        write_card(tmp_path, TOLD)
    save_artefact(exported, tmp_path)
    (tmp_path / "model.onnx").write_bytes(exported.path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated or altered"):
        write_card(tmp_path, TOLD)
    assert not (tmp_path / "README.md").exists()
