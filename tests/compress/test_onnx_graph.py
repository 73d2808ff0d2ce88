from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.onnx_graph import Count, count


def graph(tmp_path, nodes, weights, shape):
    """A file of `nodes` from "image" to "out"."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    arrays = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], [out], arrays),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("node", "weight", "shape", "macs"),
    [
        (helper.make_node("Conv", ["image", "w"], ["out"], strides=[2, 2]), ones(6, 4, 3, 3), (4, 9, 9), 6 * 36 * 16),
        (helper.make_node("Conv", ["image", "w"], ["out"], group=2), ones(6, 2, 1, 1), (4, 5, 5), 6 * 2 * 25),
        (helper.make_node("ConvTranspose", ["image", "w"], ["out"], strides=[2, 2]), ones(4, 6, 2, 2), (4, 3, 3), 864),
        (helper.make_node("Gemm", ["image", "w"], ["out"], transB=1), ones(5, 7), (7,), 35),
        (helper.make_node("MatMul", ["image", "w"], ["out"]), ones(7, 5), (3, 7), 3 * 35),
        (helper.make_node("MatMul", ["image", "image"], ["out"]), ones(2), (4, 4), 64),
    ],
)
def test_macs_by_hand(tmp_path, node, weight, shape, macs):
    path = graph(tmp_path, [node], {"w": weight}, shape)
    assert count(path) == Count(weight.size, weight.size, macs)


def test_only_parameters_count(tmp_path):
    """Not shapes, nor single numbers, nor scales and zero points; quantised weights do."""
    weight = np.array([[1, 0, -3], [0, 0, 7]], np.int8)
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "half"], ["scaled"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["float"], axis=1),
        helper.make_node("MatMul", ["scaled", "float"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["out"]),
    ]
    weights = {
        "shape": np.array([-1, 2]),
        "half": np.array(0.5, np.float32),
        "w": weight,
        "s": ones(3),
        "z": np.zeros(3, np.int8),
        "bias": np.array([0, 0, 4], np.float32),
    }
    assert count(graph(tmp_path, nodes, weights, (2, 1))) == Count(params=6 + 3, nonzero=3 + 1, macs=6)
