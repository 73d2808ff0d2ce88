from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.onnx_graph import count
from compress.onnx_model import write
from compress.quantize import integer
from compress.quantize.compact import compact
from compress.quantize.integer import quantized
from compress.quantize.scheme import Scheme


def fused(path, folder) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_fewer_bytes_answer_the_same_in_the_same_kernels(exported, digits, tmp_path, monkeypatch, mode, bits):
    images = next(digits.evaluation("val", 16)).x
    monkeypatch.setattr(integer, "compact", lambda _: None)
    plain = quantized(exported, mode, images, tmp_path / "plain.onnx", Scheme(reduce_range=False, bits=bits))
    model = onnx.load(plain.path)
    compact(model)
    small = write(model, tmp_path / "small.onnx")
    assert torch.equal(small(images), plain(images))
    assert fused(small.path, tmp_path) == fused(plain.path, tmp_path)
    assert count(small.path) == count(plain.path) == count(small.path)._replace(macs=exported.macs)
    weights = sum(array.nbytes for array in integers(plain.path))
    spared = plain.path.stat().st_size - small.path.stat().st_size
    others = plain.path.stat().st_size - weights
    assert spared > (0.4 if mode == "static" else 0.2) * others + (0 if bits == 8 else 0.49 * weights)
    onnx.checker.check_model(str(small.path), full_check=True)


def integers(path):
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    return [array for array in arrays if array.dtype == "int8" and array.ndim > 1]


def test_a_graph_in_a_graph_is_left_alone():
    inner = helper.make_graph([helper.make_node("Identity", ["image"], ["y"])], "i", [], [outer("y")])
    node = helper.make_node("If", ["true"], ["out"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [node], "g", [outer("image")], [outer("out")], [helper.make_tensor("true", 9, [], [True])]
    )
    model = helper.make_model(graph)
    before = model.SerializeToString()
    compact(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(("last", "halved"), [("Relu", True), ("GridSample", False)])
def test_weights_stay_bytes_beside_what_newer_operators_would_read_otherwise(last, halved):
    weight = numpy_helper.from_array(np.arange(-8, 8, dtype=np.int8).reshape(1, 16).repeat(16, 0), "weight")
    scale, grid = (numpy_helper.from_array(array, name) for array, name in ((np.float32(0.1), "scale"), (GRID, "grid")))
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["decoded"]),
        helper.make_node("Reshape", ["decoded", "shape"], ["square"]),
        helper.make_node(last, ["square", *(["grid"] if last == "GridSample" else [])], ["sampled"]),
        helper.make_node("ReduceSum", ["sampled"], ["total"], keepdims=0),
        helper.make_node("Add", ["image", "total"], ["out"]),
    ]
    shape = numpy_helper.from_array(np.array([1, 1, 16, 16]), "shape")
    graph = helper.make_graph(nodes, "g", [outer("image")], [outer("out")], [weight, scale, grid, shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    def answer():
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"image": np.ones(1, np.float32)})[0]

    before = answer()
    compact(model)
    assert np.array_equal(answer(), before)
    assert (model.opset_import[0].version == 21) == halved
    assert any(tensor.data_type == TensorProto.INT4 for tensor in model.graph.initializer) == halved


GRID = np.zeros((1, 4, 4, 2), np.float32)


def outer(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
