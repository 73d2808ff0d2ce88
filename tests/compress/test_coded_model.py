from __future__ import annotations

import copy
import hashlib
import struct
from contextlib import suppress

import pytest
import torch

import students
from compress import Cluster, CodedModel, Export, LowRank, Prune, Recover, Sparsify, coded_model
from kd.errors import InputError

X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
FEW = Cluster(4, 4)


@pytest.fixture
def clustered(trained, context):
    return FEW(Sparsify(0.8)(trained, context())[0], context())[0]


@pytest.fixture(scope="module")
def small():
    """Of a few bytes, so that every one of them can be altered."""
    torch.manual_seed(0)
    return students.create("cifar_resnet8", num_classes=2, in_chans=1, image_size=8, width=0.07).eval()


def same(a, b):
    first, second = a.net.state_dict(), b.net.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(bits(value), bits(second[name])) for name, value in first.items())


def bits(tensor):
    return tensor.flatten().view(torch.uint8)


@pytest.mark.parametrize("coder", ["zstd", "range"])
@pytest.mark.parametrize("stages", [(), (Sparsify(0.7),), (FEW,), (Prune(0.6), Sparsify(0.8), FEW), (LowRank(), FEW)])
def test_every_bit_and_the_blueprint_come_back(coder, stages, trained, context, tmp_path):
    model = trained
    for stage in stages:
        model, _ = stage(model, context())
    tensors = coded_model.write(model, tmp_path / "a.coded", coder)
    found = CodedModel(tmp_path / "a.coded")
    assert same(found.classifier, model)
    assert found.blueprint == model.blueprint
    assert [each.record["name"] for each in tensors] == sorted(model.net.state_dict())
    assert not found.classifier.training
    with torch.no_grad():
        assert torch.equal(found(X), model(X))
    again = coded_model.write(found.classifier, tmp_path / "b.coded", coder)
    assert [each.record for each in again] == [each.record for each in tensors]
    assert (tmp_path / "a.coded").read_bytes() == (tmp_path / "b.coded").read_bytes()


def test_a_clustered_file_is_small(clustered, trained, tmp_path):
    students.save(clustered, tmp_path / "saved")
    coded_model.write(clustered, tmp_path / "a.coded")
    coded = (tmp_path / "a.coded").stat().st_size
    assert coded < 0.45 * (tmp_path / "saved/model.safetensors").stat().st_size
    assert coded < 4 * sum(parameter.numel() for parameter in trained.parameters()) / 14


def test_reading_draws_nothing_from_the_callers_stream(clustered, tmp_path):
    coded_model.write(clustered, tmp_path / "a.coded")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    CodedModel(tmp_path / "a.coded")
    assert torch.equal(torch.rand(2), expected)


def refused(path, words):
    with pytest.raises(InputError, match=words) as error:
        CodedModel(path)
    assert error.value.field == "model"
    assert str(path) in str(error.value)


def test_any_altered_byte_is_refused(small, tmp_path):
    path = tmp_path / "a.coded"
    coded_model.write(small, path)
    content = path.read_bytes()
    for place in (*range(28), *range(28, len(content), 31), len(content) - 32, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        refused(path, "altered")
    path.write_bytes(content)
    CodedModel(path)


def test_a_truncated_file_is_refused(small, tmp_path):
    path = tmp_path / "a.coded"
    coded_model.write(small, path)
    content = path.read_bytes()
    for size in (*range(60), len(content) // 2, len(content) - 33, len(content) - 1):
        path.write_bytes(content[:size])
        refused(path, "truncated|no coded model")
    path.write_bytes(content + b"\0")
    refused(path, "altered")


def sealed(body):
    return body + hashlib.sha256(body).digest()


def test_other_files_and_versions_are_refused(small, tmp_path):
    path = tmp_path / "a.coded"
    refused(path, "cannot be read")
    path.write_bytes(b"PK\3\4 and so on" * 9)
    refused(path, "is no coded model")
    coded_model.write(small, path)
    body = path.read_bytes()[:-32]
    path.write_bytes(sealed(body[:8] + struct.pack("<I", 2) + body[12:]))
    refused(path, "is coded in version 2, 1 is known")


def test_what_was_sealed_wrong_is_refused(small, clustered, tmp_path, monkeypatch):
    """By the digest of the weights, or because the pieces do not fit: no error of another kind gets out."""
    path = tmp_path / "a.coded"
    coded_model.write(clustered, path)
    body = path.read_bytes()[:-32]
    for place in (*range(8, 36), *range(36, len(body), len(body) // 199)):
        path.write_bytes(sealed(body[:place] + bytes([body[place] ^ 0x10]) + body[place + 1 :]))
        with suppress(InputError):  # a setting of the blueprint may be another, and as good
            CodedModel(path)
    for size in (12, 40, len(body) // 2, len(body) - 5):
        path.write_bytes(sealed(body[:size]))
        refused(path, "no coded model that can be read")


def test_nothing_is_left_where_writing_fails(small, tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        coded_model.write(small, tmp_path / "a.coded")
    assert not [*tmp_path.iterdir()]


def test_a_coded_model_is_not_changed_by_stages_but_what_it_holds_is_exported(clustered, context, digits, tmp_path):
    coded_model.write(clustered, tmp_path / "a.coded")
    model = CodedModel(tmp_path / "a.coded")
    for stage in (Prune(), Sparsify(), LowRank(), Cluster(), Recover()):
        with pytest.raises(InputError, match="must come before export"):
            stage(model, context())
    with pytest.raises(InputError, match="is exported already"):
        Export()(model, context())
    exported, _ = Export()(model.classifier, context())
    with torch.no_grad():
        assert torch.allclose(exported(X), clustered(X), atol=1e-4)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_runs_once_it_is_decoded(kind, clustered, tmp_path):
    model = copy.deepcopy(clustered).to(kind)
    coded_model.write(model, tmp_path / "a.coded")
    found = CodedModel(tmp_path / "a.coded")
    assert next(found.classifier.parameters()).dtype == kind
    torch.testing.assert_close(found(X).float(), clustered(X).detach(), rtol=0.1, atol=0.1)
