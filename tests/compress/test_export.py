from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compress import Export, OnnxModel
from compress.export import TOLERANCE, convert
from compress.exporter import agreement
from compress.onnx_model import write
from kd.errors import InputError
from students import Blueprint

ALONE = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = np.load(sys.argv[2])
[image], [logits] = session.get_inputs(), session.get_outputs()
for size in (1, 3, 64):
    np.save(f"{sys.argv[2]}.{size}.npy", session.run(["logits"], {"image": images[:size]})[0])
assert "torch" not in sys.modules
print(json.dumps([image.name, image.type, image.shape[1:], logits.name, session.get_modelmeta().custom_metadata_map]))
"""


def test_the_file_alone_answers_as_torch_does(trained, context, digits, tmp_path, capfd):
    """In a process of its own that knows numpy and onnxruntime only, at several batch sizes."""
    exported, report = Export()(trained, context())
    assert isinstance(exported, OnnxModel)
    assert report.name == "export"
    assert report.details["file_bytes"] == exported.path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert capfd.readouterr().out == ""

    images = next(digits.evaluation("test", 64)).x
    np.save(tmp_path / "images.npy", images.numpy())
    command = [sys.executable, "-c", ALONE, str(exported.path), str(tmp_path / "images.npy")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    with torch.no_grad():
        expected = trained(images)
    for size in (1, 3, 64):
        found = np.load(tmp_path / f"images.npy.{size}.npy")
        assert found.shape == (size, 10)
        assert np.abs(found - expected[:size].numpy()).max() < TOLERANCE * expected.abs().max()

    name, kind, shape, output, metadata = json.loads(ran.stdout)
    assert (name, kind, shape, output) == ("image", "tensor(float)", [1, 8, 8], "logits")
    assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]
    assert json.loads(metadata["image_size"]) == [8, 8]
    assert json.loads(metadata["normalize"]) == [[0.3], [0.4]]
    assert metadata["channels"] == "1"


def test_the_graph_is_folded_and_tells_nothing_of_this_machine(exported):
    model = onnx.load(exported.path)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert all(prop.key != "pkg.torch.onnx.stack_trace" for node in model.graph.node for prop in node.metadata_props)
    assert b"site-packages" not in exported.path.read_bytes()


@pytest.mark.parametrize("opset", [18, 21])
def test_opset(trained, digits, tmp_path, opset):
    exported = Export(opset).write(trained, digits, tmp_path / "model.onnx")
    assert {entry.domain: entry.version for entry in onnx.load(exported.path).opset_import}[""] == opset


class Stubborn(nn.Module):
    """Has a linear layer and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.twist(x.flatten(1)))

    def twist(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Unknown(Stubborn):
    def twist(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


class Treacherous(Stubborn):
    def twist(self, x: torch.Tensor) -> torch.Tensor:
        return x + float(torch.compiler.is_compiling())


class Empty(Stubborn):
    def twist(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Unknown(), r"export: Unknown: has no ONNX form: .*bessel_j0"),
        (Treacherous(), r"export: Treacherous: answers otherwise in ONNX: \d.*of the logits' scale"),
        (Empty(), r"model: Empty: gives NaN or infinite logits"),
        (nn.Flatten(), r"model: Flatten: knows 64 classes, the data has 10"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_written(context, tmp_path, model, message):
    with pytest.raises(InputError, match=message):
        Export()(model, context())
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_and_a_second_export_are_refused(exported, context):
    with pytest.raises(InputError, match=r"export.opset: 11"):
        Export(opset=11)
    with pytest.raises(InputError, match=r"Export: .*exported already"):
        Export()(exported, context())


@pytest.mark.parametrize("size", [6, 12])
def test_a_model_of_another_resolution_resizes_in_its_graph(digits, tmp_path, size):
    model = Blueprint("cifar_resnet8", 10, 1, size, resize=True).build().eval()
    exported = Export().write(model, digits, tmp_path / "model.onnx")  # which compares the two
    assert exported.image_shape == (1, 8, 8)
    assert "Resize" in {node.op_type for node in onnx.load(exported.path).graph.node}


class Clipped(Stubborn):
    """As Gemma's queries and keys are, each within limits of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = nn.ParameterList([torch.tensor(limit) for limit in (0.2, 0.6, 0.3, 0.7)])

    def twist(self, x: torch.Tensor) -> torch.Tensor:
        low, high, lower, higher = self.limits
        return torch.clamp(x, low, high) + torch.clamp(x, lower, higher)


def test_one_tensor_may_be_clipped_twice(digits, tmp_path):
    Export().write(Clipped().eval(), digits, tmp_path / "model.onnx")  # which compares the two


@pytest.mark.slow
def test_values_that_the_exporter_gives_one_name_are_told_apart(tmp_path):
    """As it does in Gemma's norms, where its optimiser has to be left out."""
    model = Blueprint("gemma4_vit_167m", 10, image_size=96, width=0.25, depth=0.1).build().eval()
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    proto = convert(model, x, 18)
    onnx.checker.check_model(proto, full_check=True)
    assert agreement(write(proto, tmp_path / "model.onnx")(x), model, x)[0]
