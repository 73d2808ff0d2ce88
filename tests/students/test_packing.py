from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load, save

import students
from kd.errors import InputError
from students.packing import pack, unpack


def sparse(*shape: int, zeros: float = 0.9, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    gone = torch.rand(shape, generator=draws) < zeros
    return torch.randn(shape, generator=draws).mul(9).masked_fill(gone, 0).to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*(t.view(torch.uint8) for t in (a, b)))


def test_every_bit_comes_back():
    odd = torch.zeros(3, 5)
    odd[0] = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45, -1.0])
    state = {
        "conv": sparse(16, 8, 3, 3),
        "half": sparse(7, 9, dtype=torch.bfloat16),
        "double": sparse(7, 9, dtype=torch.float64),
        "whole": sparse(4, 6, dtype=torch.int8),
        "odd": odd,
        "nothing": torch.zeros(2, 3),
        "dense": torch.randn(4, 4),
        "bias": torch.zeros(8),
        "count": torch.tensor(3),
        "empty": torch.zeros(0, 3),
    }
    content = pack(state)
    found = unpack(content)
    assert found.keys() == state.keys()
    assert all(same_bits(found[name], value) for name, value in state.items() if value.dim())
    assert found["count"] == 3
    stored = load(content)
    assert {name for name, value in state.items() if stored[name].shape != value.shape} == {
        *("conv", "half", "double", "whole", "odd", "nothing")
    }


def test_without_many_zeros_it_is_a_plain_file():
    state = {"weight": sparse(20, 30, zeros=0.2), "bias": torch.zeros(30), "one": torch.eye(1)}
    assert pack(state) == save(state)
    assert all(torch.equal(value, state[name]) for name, value in unpack(save(state)).items())


@pytest.mark.parametrize(("zeros", "share"), [(0.3, 0.68), (0.6, 0.41), (0.9, 0.115), (0.99, 0.016)])
def test_it_is_as_small_as_it_should_be(zeros, share):
    weight = sparse(128, 64, 3, 3, zeros=zeros)
    assert len(pack({"weight": weight})) < share * weight.nbytes


def test_a_sparse_model_is_smaller_and_comes_back_exactly(tmp_path):
    torch.manual_seed(0)
    model = students.create("cifar_resnet8", num_classes=5, image_size=16).eval()
    students.save(model, tmp_path / "dense")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(sparse(*weight.shape))
    students.save(model, tmp_path / "sparse")
    dense, small = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("dense", "sparse"))
    assert small < 0.16 * dense  # of which headers and norms are a third
    again = students.load(tmp_path / "sparse")
    assert all(same_bits(value, again.state_dict()[name]) for name, value in model.state_dict().items() if value.dim())


def altered(content: bytes, change) -> bytes:
    """Another header over the same tensors."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    told = json.loads(header["__metadata__"]["packed"])
    change(told)
    header["__metadata__"]["packed"] = json.dumps(told)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(version=2),
        lambda told: told.pop("version"),
        lambda told: told["weights"]["conv"].update(shape=[16, 8, 3, 2]),
        lambda told: told["weights"]["conv"].update(shape=[10**9, 10**9]),
        lambda told: told["weights"]["conv"].update(shape=[-16, -8, 3, 3]),
        lambda told: told["weights"]["conv"].update(shape="many"),
        lambda told: told["weights"]["conv"].update(type="float64"),
        lambda told: told["weights"]["conv"].update(type="nn"),
        lambda told: told["weights"].update(other=told["weights"]["conv"]),
    ],
)
def test_what_does_not_fit_is_refused(change):
    content = pack({"conv": sparse(16, 8, 3, 3)})
    assert unpack(altered(content, lambda told: None)).keys() == {"conv"}
    with pytest.raises(ValueError, match=r"\w"):
        unpack(altered(content, change))


def test_no_altered_byte_of_a_sparse_model_goes_unseen(tmp_path):
    model = students.create("cifar_resnet8", num_classes=2, image_size=8, width=0.25).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(sparse(*weight.shape))
    students.save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    assert len(load(content)["conv1.weight"].shape) == 1
    header = int.from_bytes(content[:8], "little")
    places = [0, 7, *torch.linspace(8, header, 30).long(), *torch.linspace(header + 8, len(content) - 1, 40).long()]
    for place in map(int, places):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = students.load(tmp_path).state_dict()
        except InputError:
            continue
        assert place < header  # white space
        assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
    path.write_bytes(content[:-9])
    with pytest.raises(InputError, match="torn or no safetensors"):
        students.load(tmp_path)
