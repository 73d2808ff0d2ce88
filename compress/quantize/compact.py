"""A quantised file in fewer bytes, without a change to what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, product
from string import ascii_letters, digits
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.onnx_graph import arrays, quantisation

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_DEFAULTS = {"dilations": 1, "strides": 1, "pads": 0, "group": 1}
"""What a convolution does where nothing is said."""
_FEW = 16  # scales whose halves would save less than the node that widens them takes
_HALF_BYTES = 21  # ONNX's first version with integers of 4 bits
_CHANGED = ("GroupNormalization", "GridSample", "DFT")  # what earlier versions meant by these is not what that one does


def compact(model: ModelProto) -> None:
    """Leave out, in place, whatever the runtime knows by itself or finds twice.

    The scale of a bias is the product of two that are there, which a runtime computes as it loads the file; symmetric
    weights need no zero points, equal scales and zero points are kept once, weights of 4 bits or fewer share bytes, and
    tensors have short names. A graph that holds others, which may read its tensors, is left as it is.
    """
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return
    _drop_zero_points(graph)
    _multiply_scales(graph)
    _share(graph)
    _halve_scales(graph)
    _halve_bytes(model)
    _drop_defaults(graph)
    _shorten(graph)
    del graph.value_info[:]


def _drop_zero_points(graph: GraphProto) -> None:
    """Of the weights of convolutions and of biases; without others onnxruntime would compute in float."""
    stored, makers = arrays(graph), {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        symmetric = {"Conv": node.input[1:], "Gemm": node.input[2:]}.get(node.op_type, ())
        for part in (makers[name] for name in symmetric if name in makers):
            if part.op_type == "DequantizeLinear" and len(part.input) == 3 and not stored[part.input[2]].any():
                del part.input[2]


def _multiply_scales(graph: GraphProto) -> None:
    """Make the scale of a bias from those of the input and the weight, where that gives the very same numbers."""
    from onnx import helper

    stored, makers = arrays(graph), {name: node for node in graph.node for name in node.output}
    products = []
    for node in graph.node:
        parts = [makers[name] for name in node.input if name in makers]
        if len(parts) < 3 or any(part.op_type != "DequantizeLinear" for part in parts):
            continue
        scales = [part.input[1] for part in parts]
        if node.op_type in ("Conv", "Gemm") and all(name in stored for name in scales):
            x, weight, bias = (stored[name] for name in scales)
            if bias.size > 1 and np.array_equal(x * weight, bias):
                products.append(helper.make_node("Mul", scales[:2], [f"{scales[2]}.product"]))
                parts[2].input[1] = f"{scales[2]}.product"
    _prepend(graph, products)


def _share(graph: GraphProto) -> None:
    """Keep one of equal scales and zero points, and no array that is not read."""
    kinds = quantisation(graph)
    first: dict[tuple[Any, ...], str] = {}
    instead: dict[str, str] = {}
    for name, array in arrays(graph).items():
        if name in kinds:
            instead[name] = first.setdefault((array.dtype.str, array.shape, array.tobytes()), name)
    _rename(graph, lambda name: instead.get(name, name))
    read, seen = {name for node in graph.node for name in node.input}, set[str]()
    for tensor in list(graph.initializer):
        if tensor.name not in read - seen:
            graph.initializer.remove(tensor)
        seen.add(tensor.name)


def _halve_scales(graph: GraphProto) -> None:
    """Store scales of many channels in half precision, where it holds them: a runtime widens them as it loads them."""
    from onnx import TensorProto, helper, numpy_helper

    kinds, casts = quantisation(graph), []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name in kinds and array.dtype == np.float32 and array.size > _FEW:
            half = array.astype(np.float16)
            if np.array_equal(half, array):
                casts.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))
                tensor.CopyFrom(numpy_helper.from_array(half, f"{tensor.name}.half"))
    _prepend(graph, casts)


def _halve_bytes(model: ModelProto) -> None:
    """Store two weights of 4 bits in a byte, which a runtime widens as it loads them, for its integer kernels."""
    from onnx import TensorProto, helper, numpy_helper

    graph, casts = model.graph, []
    if any(node.op_type in _CHANGED for node in graph.node):
        return
    kinds, int4 = quantisation(graph), helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
    for tensor in graph.initializer:
        if tensor.name not in kinds and tensor.data_type == TensorProto.INT8:
            array = numpy_helper.to_array(tensor)
            if array.size > 8 * _FEW and array.min() >= -8 and array.max() <= 7:
                casts.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.INT8))
                tensor.CopyFrom(numpy_helper.from_array(array.astype(int4), f"{tensor.name}.half"))
    if casts:
        _prepend(graph, casts)
        (opset,) = (entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        opset.version, model.ir_version = max(opset.version, _HALF_BYTES), max(model.ir_version, 10)


def _prepend(graph: GraphProto, nodes: list[NodeProto]) -> None:
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])


def _drop_defaults(graph: GraphProto) -> None:
    """Names of nodes, and attributes that say what holds without them."""
    for node in graph.node:
        node.ClearField("name")
        for attribute in list(node.attribute):
            values = set(attribute.ints) or {attribute.i}
            plain = node.op_type == "Conv" and values == {_DEFAULTS.get(attribute.name)}
            plain |= node.op_type == "Conv" and attribute.name == "kernel_shape"  # that of the weight
            plain |= node.op_type == "Conv" and attribute.s == b"NOTSET"
            plain |= node.op_type == "DequantizeLinear" and attribute.name == "axis" and attribute.i == 1
            if plain:
                node.attribute.remove(attribute)


def _shorten(graph: GraphProto) -> None:
    """Call tensors a, b, c, but what goes in and comes out as before."""
    kept = {value.name for value in (*graph.input, *graph.output)}
    fresh = (name for name in _names() if name not in kept)
    names: dict[str, str] = {"": ""} | {name: name for name in kept}

    def short(name: str) -> str:
        if name not in names:
            names[name] = next(fresh)
        return names[name]

    _rename(graph, short)


def _names() -> Iterator[str]:
    return ("".join(letters) for length in count(1) for letters in product(ascii_letters + digits, repeat=length))


def _rename(graph: GraphProto, to: Callable[[str], str]) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            changed = [to(name) for name in names]
            del names[:]
            names.extend(changed)
    for tensor in graph.initializer:
        tensor.name = to(tensor.name)
