from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import students
from compress.export import convert
from compress.onnx_graph import count
from compress.onnx_model import verify, write
from compress.quantize.integer import integer_convolutions, quantized
from compress.quantize.scheme import Scheme, saturates
from kd.errors import InputError


def weights(path):
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.int8 and array.size > 64}


@pytest.mark.parametrize(("name", "depth"), [("cifar_resnet20", 1.0), ("mobilenetv2_050", 0.34)])
def test_nearly_all_convolutions_run_in_integers(name, depth, tmp_path):
    """MobileNetV2 has depthwise ones."""
    torch.manual_seed(0)
    model = students.create(name, num_classes=10, image_size=32, depth=depth).eval()
    images = torch.rand(8, 3, 32, 32)
    exported = write(convert(model, images, 18), tmp_path / "float.onnx")
    small = quantized(exported, "static", images, tmp_path / "int8.onnx")

    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    assert integer_convolutions(exported.path) == (0, convolutions)
    run, total = integer_convolutions(small.path)
    assert total == convolutions
    assert run >= 0.9 * total
    assert small.path.stat().st_size < 0.45 * exported.path.stat().st_size
    assert small.macs == exported.macs


def test_residual_additions_are_fused_too(exported, digits, tmp_path):
    import onnxruntime

    small = quantized(exported, "static", next(digits.evaluation("val", 32)).x, tmp_path / "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(str(small.path), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearAdd"] == 3
    assert kinds["Add"] == 0


class Odd(nn.Module):
    """Several stored matrices in one product, as position embeddings of two axes are, and a layer of one output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(64, 40), nn.Linear(40, 1), nn.Linear(40, 10)
        self.heads = nn.Parameter(torch.randn(2, 40, 40) / 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (self.first(x.flatten(1)) @ self.heads).sum(0)
        return self.last(x * self.gate(x).sigmoid())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_odd_products_run(digits, tmp_path, mode, per_channel):
    torch.manual_seed(0)
    images = next(digits.evaluation("val", 32)).x
    exported = write(convert(Odd().eval(), images, 18), tmp_path / "float.onnx")
    small = quantized(exported, mode, images, tmp_path / "int8.onnx", Scheme(per_channel=per_channel))
    assert (small(images) - exported(images)).norm() < 0.05 * exported(images).norm()


def test_group_norms_stay_in_float(digits, tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(288, 10)).eval()
    images = next(digits.evaluation("val", 8)).x
    exported = write(convert(net, images, 18), tmp_path / "float.onnx")
    small = quantized(exported, "static", images, tmp_path / "int8.onnx")
    nodes = onnx.load(small.path).graph.node
    makers = {output: node.op_type for node in nodes for output in node.output}
    (norm,) = (node for node in nodes if node.op_type == "InstanceNormalization")
    assert not {makers.get(name) for name in norm.input[1:]} & {"DequantizeLinear"}
    assert "DequantizeLinear" in makers.values()


def test_a_net_on_which_onnxruntimes_symbolic_shapes_fail_is_quantised(digits, tmp_path):
    class Unit(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(x, dim=-1)

    net = nn.Sequential(nn.Conv2d(1, 8, 3), Unit(), nn.Flatten(), nn.Linear(288, 10)).eval()
    images = next(digits.evaluation("val", 8)).x
    exported = write(convert(net, images, 18), tmp_path / "float.onnx")
    for mode in ("static", "dynamic"):
        small = quantized(exported, mode, images, tmp_path / "int8.onnx")
        assert (small(images) - exported(images)).norm() < 0.1 * exported(images).norm()


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_int8_files_take_any_batch_and_answer_for_each_image_alone(exported, digits, tmp_path, mode):
    images = next(digits.evaluation("val", 33)).x
    small = quantized(exported, mode, images, tmp_path / "int8.onnx")
    whole = small(images)
    for size in (1, 2, 7):
        assert small(images[:size]).shape == (size, 10)
    if mode == "static":  # dynamic ranges are those of the batch
        torch.testing.assert_close(torch.cat([small(image[None]) for image in images]), whole)


def test_what_onnxruntime_cannot_quantise_is_told(exported, digits, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("not supported yet")

    monkeypatch.setattr("onnxruntime.quantization.qdq_quantizer.QDQQuantizer", fail)
    with pytest.raises(InputError, match=r"quantize\.mode: static: onnxruntime cannot .*not supported yet"):
        quantized(exported, "static", next(digits.evaluation("val", 8)).x, tmp_path / "int8.onnx")


@pytest.mark.parametrize(("reduce_range", "limit"), [(False, 127), (True, 64)])
def test_reduced_range_keeps_weights_to_seven_bits(exported, digits, tmp_path, reduce_range, limit):
    images = next(digits.evaluation("val", 8)).x
    small = quantized(exported, "static", images, tmp_path / "int8.onnx", Scheme(reduce_range=reduce_range))
    assert max(np.abs(array.astype(int)).max() for array in weights(small.path).values()) == limit


def test_a_scale_each_channel(exported, digits, tmp_path):
    """Then each output channel uses the whole range; with one scale a tensor hardly any does."""
    images = next(digits.evaluation("val", 8)).x
    for per_channel in (True, False):
        small = quantized(
            exported, "static", images, tmp_path / "int8.onnx", Scheme(reduce_range=False, per_channel=per_channel)
        )
        full = [
            (np.abs(array.astype(int)).max((1, 2, 3)) == 127)
            for array in weights(small.path).values()
            if array.ndim == 4
        ]
        assert full
        assert all(channels.all() for channels in full) == per_channel


@pytest.mark.parametrize("calibrate", ["minmax", "percentile", "entropy", "mse"])
def test_every_calibration_sees_all_images(exported, digits, tmp_path, calibrate, capfd):
    """Ranges found on bright images only must differ from those found on all."""
    images = next(digits.evaluation("val", 24)).x
    dark = images * 0.1
    x = next(digits.evaluation("val", 64)).x
    answers = exported(x)

    def error(seen):
        return float(
            (quantized(exported, "static", seen, tmp_path / "q.onnx", Scheme(calibrate=calibrate))(x) - answers).norm()
        )

    assert error(torch.cat([dark, images])) < 0.5 * error(dark)
    assert error(torch.cat([images, dark])) < 0.5 * error(dark)
    assert capfd.readouterr().out == ""


def test_parameters_and_metadata_stay_and_a_second_time_is_refused(exported, digits, tmp_path):
    images = next(digits.evaluation("val", 8)).x
    for mode in ("static", "dynamic"):
        small = quantized(exported, mode, images, tmp_path / f"{mode}.onnx")
        verify(small.path)
        assert count(small.path)[::2] == count(exported.path)[::2]
        assert {"classes", "normalize"} <= {prop.key for prop in onnx.load(small.path).metadata_props}
        with pytest.raises(InputError, match=rf"Quantize: {mode}.onnx is quantised already"):
            quantized(small, mode, images, tmp_path / "twice.onnx")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": False}, True),
        ({"architecture": "x86_64", "avx512_vnni": True, "avx_vnni": False}, False),
        ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": True}, False),
        ({"architecture": "aarch64", "dot": True}, False),
    ],
)
def test_which_processors_overflow(monkeypatch, facts, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts)
    assert saturates() is expected


@pytest.mark.parametrize("opset", [11, 18])
def test_nodes_without_names_are_told_apart(opset, tmp_path):
    """As other programs write them; layers are known by their names here."""
    draws = np.random.default_rng(0)
    stored = [draws.normal(size=(10, 10)).astype(np.float32) / 3 for _ in range(3)]
    arrays = [numpy_helper.from_array(array * 10**place, f"w{place}") for place, array in enumerate(stored)]
    names = ["flat", "a", "b", "out"]
    nodes = [onnx.helper.make_node("Flatten", ["image"], ["flat"])]
    nodes += [onnx.helper.make_node("MatMul", [names[k], f"w{k}"], [names[k + 1]]) for k in range(3)]
    image, out = (
        onnx.helper.make_tensor_value_info(name, 1, shape)
        for name, shape in (("image", ["n", 1, 2, 5]), ("out", ["n", 10]))
    )
    graph = onnx.helper.make_graph(nodes, "g", [image], [out], arrays)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    exported, images = write(model, tmp_path / "float.onnx"), torch.rand(64, 1, 2, 5)
    expected = exported(images)
    for mode in ("static", "dynamic"):
        small = quantized(exported, mode, images, tmp_path / f"{mode}.onnx", Scheme(correct_bias=True))
        assert (small(images) - expected).norm() < 0.03 * expected.norm(), mode


class Transforms(nn.Module):
    """A linear layer on frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.fft.fft2(x).real.flatten(1))


def test_operators_that_later_versions_read_otherwise_keep_bytes(digits, tmp_path):
    images = next(digits.evaluation("val", 32)).x
    exported = write(convert(Transforms().eval(), images, 18), tmp_path / "float.onnx")
    for mode in ("static", "dynamic"):
        small = quantized(exported, mode, images, tmp_path / f"{mode}.onnx", Scheme(bits=4))
        assert small(images).isfinite().all()
