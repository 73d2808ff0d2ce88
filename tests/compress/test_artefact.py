from __future__ import annotations

import pytest
import torch

import students
from compress import OnnxModel, load_artefact, save_artefact
from kd.errors import InputError

X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_classifier_comes_back(trained, tmp_path):
    save_artefact(trained, tmp_path)
    loaded = load_artefact(tmp_path)
    assert isinstance(loaded, students.Classifier)
    with torch.no_grad():
        assert torch.equal(loaded(X), trained(X))


def test_an_onnx_file_comes_back(exported, tmp_path):
    save_artefact(exported, tmp_path)
    loaded = load_artefact(tmp_path)
    assert isinstance(loaded, OnnxModel)
    assert loaded.path == tmp_path / "model.onnx"
    assert torch.equal(loaded(X), exported(X))
    before = loaded.path.stat()
    save_artefact(loaded, tmp_path)  # it lies there already
    assert loaded.path.stat().st_mtime_ns == before.st_mtime_ns
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("harm", [lambda content: content[:-1], lambda content: content[:200] + b"x" + content[201:]])
def test_truncated_or_altered_onnx_is_refused(exported, tmp_path, harm):
    save_artefact(exported, tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(InputError, match=r"model.onnx: was truncated or altered"):
        load_artefact(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds neither model.onnx nor model.coded nor blueprint.json"):
        load_artefact(tmp_path)


def test_another_module_is_no_artefact(tmp_path):
    with pytest.raises(TypeError, match="Linear"):
        save_artefact(torch.nn.Linear(1, 1), tmp_path / "new")
    assert not (tmp_path / "new").exists()
