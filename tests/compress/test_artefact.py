from __future__ import annotations

import random
import shutil

import onnx
import pytest
import torch

import students
from compress import OnnxModel, TorchExport, load_artefact, save_artefact
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


@pytest.fixture(scope="module")
def kept(exported, digits, tmp_path_factory):
    """A folder of each kind of artefact: of a small net, so that reading is quick."""
    small = students.create("cifar_resnet8", num_classes=10, in_chans=1, image_size=8, width=0.1)
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("onnx", "pt2", "folder")}
    save_artefact(exported, folders["onnx"])
    TorchExport().write(small, digits, folders["pt2"] / "model.pt2")
    save_artefact(small, folders["folder"])
    return folders


@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [
        ("onnx", "model.onnx", 300),
        ("pt2", "model.pt2", 300),
        ("folder", "model.safetensors", 60),
        ("folder", "blueprint.json", 60),
    ],
)
def test_an_artefact_altered_in_any_byte_or_cut_anywhere_is_refused(kept, tmp_path, kind, name, count):
    """Also a byte that means nothing: a blank, a header's padding, the seal itself."""
    shutil.copytree(kept[kind], tmp_path, dirs_exist_ok=True)
    path = tmp_path / name
    content, draws = path.read_bytes(), random.Random(0)
    load_artefact(tmp_path)
    ends = [*range(8), *range(len(content) - 30, len(content))]
    blanks = [place for place, byte in enumerate(content[:400]) if byte in b" \n"]
    for place in (*draws.sample(range(len(content)), count), *ends, *draws.sample(blanks, min(12, len(blanks)))):
        altered = bytearray(content)
        altered[place] = draws.choice([9, 10, 32]) if content[place] in b" \n" else draws.randrange(256)
        if altered[place] != content[place]:
            path.write_bytes(altered)
            with pytest.raises(InputError):
                load_artefact(path if kind != "folder" and place % 2 else tmp_path)
    for size in (0, 1, 7, len(content) // 2, *(len(content) - cut for cut in (1, 2, 86, 100))):
        path.write_bytes(content[: max(size, 0)])
        with pytest.raises(InputError):
            load_artefact(tmp_path)


def test_a_file_of_another_program_is_taken_as_it_is(exported, tmp_path):
    model = onnx.load(exported.path)
    model.producer_name = "another"
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "model.onnx")
    assert torch.equal(load_artefact(tmp_path / "model.onnx")(X), exported(X))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model.onnx, model.pt2, model.pte, model.coded nor blueprint.json"):
        load_artefact(tmp_path)


def test_another_module_is_no_artefact(tmp_path):
    with pytest.raises(TypeError, match="Linear"):
        save_artefact(torch.nn.Linear(1, 1), tmp_path / "new")
    assert not (tmp_path / "new").exists()
