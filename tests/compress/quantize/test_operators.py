"""Each operator against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from compress.quantize.operators import OPERATORS

DRAWS = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return DRAWS.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X = floats(2, 4, 6, 6)
ROWS = floats(3, 5)
POSITIVE = np.abs(X) + 0.1
COUNTS = whole(7, -7, 3)
YES = np.array([True, False, True])
CASES = [
    *((name, [X, floats(4, 1, 1)], {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *((name, [X, floats(4, 1, 1), floats(6)], {}) for name in ("Max", "Sum")),
    ("Sum", [X], {}),
    ("Div", [COUNTS, whole(2, 2, 2)], {}),
    ("Pow", [POSITIVE, np.float32(2.5)], {}),
    ("Equal", [COUNTS, whole(7, 7, 3)], {}),
    ("Not", [YES], {}),
    ("Where", [YES, floats(3), floats(3)], {}),
    ("Sqrt", [POSITIVE], {}),
    *((name, [X], {}) for name in ("Exp", "Neg", "Erf", "Sin", "Cos", "Tanh", "Sigmoid", "Relu", "Identity")),
    *((name, [4 * X], {}) for name in ("HardSwish", "HardSigmoid")),
    ("HardSigmoid", [4 * X], {"alpha": 1 / 6, "beta": 0.5}),
    ("LeakyRelu", [X], {"alpha": 0.2}),
    ("PRelu", [X, floats(4, 1, 1)], {}),
    ("Clip", [X, np.float32(0), np.float32(1)], {}),
    ("Clip", [X, None, np.float32(0.5)], {}),
    ("Clip", [X], {}),
    ("Gelu", [X], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Softmax", [X], {"axis": 1}),
    ("Softmax", [X], {}),
    ("LayerNormalization", [X, floats(6), floats(6)], {"epsilon": 1e-3}),
    ("LayerNormalization", [X, floats(6, 6)], {"axis": 2}),
    ("BatchNormalization", [X, floats(4), floats(4), floats(4), np.abs(floats(4))], {"epsilon": 1e-3}),
    ("InstanceNormalization", [X, floats(4), floats(4)], {"epsilon": 1e-3}),
    *((name, [X, whole(2, 3)], {"keepdims": 0}) for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")),
    ("ReduceMean", [X], {}),
    ("ReduceMean", [X], {"noop_with_empty_axes": 1}),
    ("GlobalAveragePool", [X], {}),
    ("AveragePool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [X], {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", [X], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    ("Conv", [X, floats(8, 4, 3, 3), floats(8)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", [X, floats(8, 2, 3, 3)], {"group": 2, "dilations": [2, 2], "pads": [0, 1, 2, 2]}),
    ("Gemm", [ROWS, floats(4, 5), floats(4)], {"transB": 1}),
    ("Gemm", [ROWS, floats(3, 4), floats(4)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("MatMul", [floats(2, 3, 4), floats(2, 4, 5)], {}),
    ("Reshape", [X, whole(0, -1, 9)], {}),
    ("Flatten", [X], {"axis": 2}),
    ("Flatten", [X], {}),
    ("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    ("Transpose", [X], {}),
    ("Squeeze", [floats(2, 1, 3, 1), whole(1, -1)], {}),
    ("Squeeze", [floats(2, 1, 3, 1)], {}),
    ("Unsqueeze", [X, whole(0, -1)], {}),
    ("Concat", [X, floats(2, 1, 6, 6)], {"axis": 1}),
    ("Split", [X, whole(1, 3)], {"axis": 1}),
    ("Split", [floats(7, 3)], {"num_outputs": 4}),
    ("Slice", [X, whole(1, -4), whole(2**63 - 1, -1), whole(1, 3), whole(2, 1)], {}),
    ("Slice", [X, whole(0), whole(1)], {}),
    ("Gather", [X, whole(1, -1)], {"axis": 1}),
    ("Gather", [X, np.array(2, np.int64)], {"axis": 3}),
    ("Gather", [X, np.array([[0, 1, 1]])], {"axis": -1}),
    ("GatherND", [X, np.array([[0, 1], [1, 3]])], {}),
    ("Expand", [floats(4, 1, 6), whole(2, 1, 3, 1)], {}),
    ("Pad", [X, whole(0, 1, 0, 2, 0, 0, 1, 3)], {}),
    ("Pad", [X, whole(0, 0, 1, 1, 0, 0, 1, 1), np.float32(-1)], {}),
    ("Shape", [X], {}),
    ("Shape", [X], {"start": 1, "end": 3}),
    ("Cast", [X * 3], {"to": 7}),
    ("Cast", [YES], {"to": 1}),
    ("Range", [np.float32(1), np.float32(6), np.float32(1.5)], {}),
    ("CumSum", [X, np.array(1, np.int64)], {}),
]


def by_onnxruntime(name, inputs, attributes) -> list[np.ndarray]:
    names = ["" if value is None else f"x{place}" for place, value in enumerate(inputs)]
    outputs = 1
    if name == "Split":
        outputs = attributes.get("num_outputs") or len(inputs[1])
    node = helper.make_node(name, names, [f"y{place}" for place in range(outputs)], **attributes)
    arrays = [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names, inputs, strict=True) if n]
    results = [helper.make_empty_tensor_value_info(output) for output in node.output]
    graph = helper.make_graph([node], "one", [], results, arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {})


@pytest.mark.parametrize(("name", "inputs", "attributes"), CASES)
def test_answers_as_onnxruntime_does(name, inputs, attributes):
    tensors = [None if value is None else torch.from_numpy(np.array(value)) for value in inputs]
    found = OPERATORS[name](*tensors, **attributes)
    expected = by_onnxruntime(name, inputs, attributes)
    for one, other in zip([found] if isinstance(found, torch.Tensor) else found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, torch.from_numpy(other), rtol=1e-5, atol=1e-5)


def test_none_is_left_out():
    assert {name for name, *_ in CASES} == set(OPERATORS)


@pytest.mark.parametrize(
    ("name", "inputs", "attributes", "words"),
    [
        ("Conv", [X, floats(8, 4, 3, 3)], {"auto_pad": "SAME_UPPER"}, "Conv with auto_pad SAME_UPPER"),
        ("AveragePool", [X], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, "AveragePool with another padding"),
        ("Pad", [X, whole(*[1] * 8)], {"mode": "reflect"}, "Pad of mode reflect"),
        ("Slice", [X, whole(3), whole(0), whole(1), whole(-1)], {}, "Slice that runs backwards"),
        ("Cast", [X], {"to": 10}, "Cast to ONNX's type 10"),
        ("CumSum", [X, np.array(1)], {"reverse": 1}, "CumSum that is exclusive or reverse"),
        ("GatherND", [X, whole(0)], {"batch_dims": 1}, "GatherND within a batch"),
    ],
)
def test_what_it_does_not_do_is_told(name, inputs, attributes, words):
    with pytest.raises(NotImplementedError, match=words):
        OPERATORS[name](*(torch.from_numpy(np.array(value)) for value in inputs), **attributes)
