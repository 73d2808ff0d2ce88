"""What an ONNX file holds and does: its parameters and its multiply-accumulates, read off the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.file_model import Count
from compress.onnx_model import session_options
from compress.onnx_sparse import unpack

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# where the two factors stand among the inputs of each operator that multiplies and accumulates
_FACTORS = {
    "Conv": (0, 1),
    "ConvInteger": (0, 1),
    "ConvTranspose": (0, 1),
    "FusedConv": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
}

# where scales and zero points stand among the inputs of each operator that computes with integers
_CODES = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
}


def count(path: Path) -> Count:
    """Read the sums off a file.

    Parameters are the initialisers with more than one element, except integers of 64 bits (shapes, indices) and the
    scales and zero points of quantisation. So biases, position embeddings and the mean and deviation of the images
    count; a BatchNorm that was folded does not: expect small differences from torch's count. Quantised weights must be
    symmetric (zero is 0), as those of `Quantize` are.
    Multiply-accumulates are those of convolutions and matrix products, float or integer, weights or activations.
    """
    import onnx

    model = onnx.load(path)
    unpack(model)
    weights = [array for name, array in arrays(model.graph).items() if name not in quantisation(model.graph)]
    params = [array for array in weights if array.size > 1 and array.dtype != np.int64]
    return Count(
        sum(array.size for array in params), sum(int(np.count_nonzero(array)) for array in params), _macs(model)
    )


def arrays(graph: GraphProto) -> dict[str, Any]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def quantisation(graph: GraphProto) -> set[str]:
    """Names of scales and zero points, by where they stand."""
    makers = {name: node for node in graph.node for name in node.output}
    names: set[str] = set()
    for node in graph.node:
        names.update(node.input[place] for place in _CODES.get(node.op_type, ()) if place < len(node.input))
        if node.op_type == "Mul":  # dynamic: the scale of what flows times that of a weight
            scales = [name for name in node.input if name in makers]
            if any(makers[name].op_type == "DynamicQuantizeLinear" for name in scales):
                names.update(node.input)
    for kind in ("Mul", "Cast"):  # the scale of a bias is made of two, and one in half precision is widened
        for name in [name for name in names if name in makers and makers[name].op_type == kind]:
            names.update(makers[name].input)
    return names


def _macs(model: ModelProto) -> int:
    shapes = _shapes(model)
    return sum(_node_macs(node, shapes) for node in _products(model))


def _products(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type in _FACTORS]


def _node_macs(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    left, right = (shapes[node.input[place]] for place in _FACTORS[node.op_type])
    if node.op_type == "ConvTranspose":  # each input element meets the whole kernel
        return prod(left) * prod(right[1:])
    out = prod(shapes[node.output[0]])
    if "Conv" in node.op_type:  # right: (out, in / groups, height, width)
        return out * prod(right[1:])
    transposed = node.op_type == "Gemm" and any(item.name == "transA" and item.i for item in node.attribute)
    return out * left[0 if transposed else -1]


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes of factors and products for one image, found by running it: shape inference knows too little."""
    graph = model.graph
    places = ((node, (*_FACTORS[node.op_type],)) for node in _products(model))
    names = {name for node, factors in places for name in (*(node.input[place] for place in factors), node.output[0])}
    known = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    image = np.zeros([1, *(dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[1:])], np.float32)
    wanted = sorted(names - known.keys() - {graph.input[0].name})
    (found,) = observed(model, wanted, image)
    return known | {name: array.shape for name, array in found.items()} | {graph.input[0].name: image.shape}


def observed(
    model: ModelProto, names: Sequence[str], images: np.ndarray, batch: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """What the tensors `names` are for (n, C, H, W) images, `batch` of them at a time, as onnxruntime computes them."""
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keeps every tensor
    session = None
    if names:
        session = onnxruntime.InferenceSession(watched.SerializeToString(), options, ["CPUExecutionProvider"])
    for start in range(0, len(images), batch):
        feed = {model.graph.input[0].name: images[start : start + batch]}
        arrays = session.run(list(names), feed) if session else []
        yield dict(zip(names, arrays, strict=True))
