from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.onnx_graph import Count, count
from compress.onnx_model import session_options, write
from compress.onnx_sparse import pack, unpack


def model(weight: np.ndarray, opset: int = 18) -> onnx.ModelProto:
    """A product of images with `weight`, and the sum with a bias of zeros."""
    inputs, outputs = weight.shape
    nodes = [
        helper.make_node("MatMul", ["image", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", inputs])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(outputs, np.float32), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def weight(inputs: int, outputs: int, *there: int) -> np.ndarray:
    """Of these entries alone."""
    made = np.zeros((inputs, outputs), np.float32)
    made.flat[list(there)] = np.random.default_rng(0).standard_normal(len(there))
    return made


def answers(proto: onnx.ModelProto, image: np.ndarray, options=None) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options or session_options(1))
    return session.run(None, {"image": image})[0]


WEIGHTS = {
    "gaps of 254 to 256": weight(40, 50, 0, 254, 509, 765, 1020, 1275),
    "far": weight(40, 50, 1999),
    "nothing": weight(40, 50),
    "first": weight(40, 50, 0),
    "tenth": weight(40, 50, *np.random.default_rng(1).choice(2000, 200, replace=False)),
    "half": weight(4, 4, *range(0, 16, 2)),
}


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("name", WEIGHTS)
def test_it_answers_alike_and_comes_back_whole(name, opset):
    given = model(WEIGHTS[name], opset)
    packed = onnx.ModelProto.FromString(given.SerializeToString())
    pack(packed)
    onnx.checker.check_model(packed, full_check=True)
    assert [node.op_type for node in packed.graph.node] == ["Unpack", "MatMul", "Add"]
    image = np.random.default_rng(2).random((3, len(WEIGHTS[name])), np.float32)
    assert np.array_equal(answers(packed, image), answers(given, image))
    unpack(packed)
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in packed.graph.initializer}
    assert np.array_equal(initializers["w"], WEIGHTS[name])
    del packed.graph.initializer[:], given.graph.initializer[:]
    assert packed == given


def test_what_is_not_half_zero_stays_as_it_is():
    given = model(weight(4, 4, *range(9)))
    packed = onnx.ModelProto.FromString(given.SerializeToString())
    pack(packed)
    assert packed == given
    unpack(packed)
    assert packed == given


def test_a_value_takes_five_bytes_and_is_unpacked_once(tmp_path):
    there = np.random.default_rng(0).choice(300 * 400, 12_000, replace=False)
    given = model(weight(300, 400, *there))
    plain = write(given, tmp_path / "plain.onnx")
    pack(given)
    packed = write(given, tmp_path / "packed.onnx")
    assert plain.path.stat().st_size > 4 * 120_000
    assert packed.path.stat().st_size < 5 * 12_000 + 3_000
    assert count(packed.path) == count(plain.path) == Count(120_000 + 400, 12_000, 120_000)
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    answers(given, np.zeros((1, 300), np.float32), options)
    assert {node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node} <= {"MatMul", "Add", "Gemm"}
