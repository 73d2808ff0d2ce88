"""ONNX files in which weights that are mostly zero take fewer bytes, for any runtime.

A node makes such a weight from its values and the gaps between them (Han et al., Deep compression, 2016, section 2). It
calls a function that stands in the file itself, in ONNX's own operators; onnxruntime runs it once, as it loads the
file. A value takes 5 bytes. In ONNX's `sparse_initializer`, which onnx's own checker refuses, it would take 12.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import FunctionProto, ModelProto, NodeProto

DOMAIN, NAME = "retort", "Unpack"
_FAR = 255  # the largest gap: within a wider one stands a value that is zero


def pack(model: ModelProto) -> None:
    """Replace the float weights of which at least half is zero, in place."""
    from onnx import helper, numpy_helper

    graph, nodes = model.graph, []
    for tensor in list(graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1 and 0 < array.size >= 2 * np.count_nonzero(array):
            inputs = {f"{tensor.name}.{part}": value for part, value in _parts(array).items()}
            graph.initializer.remove(tensor)
            graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in inputs.items())
            nodes.append(helper.make_node(NAME, [*inputs], [tensor.name], domain=DOMAIN))
    if nodes:
        others = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes, *others])
        opset = next(entry for entry in model.opset_import if entry.domain == "")
        model.functions.append(_function(opset.version))
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def unpack(model: ModelProto) -> None:
    """Put plain weights in the place of those that `pack` replaced, in place."""
    from onnx import numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.domain == DOMAIN]:
        values, gaps, shape = (numpy_helper.to_array(stored[name]) for name in node.input)
        array = np.zeros(shape, np.float32)
        array.flat[np.cumsum(gaps, dtype=np.int64) - 1] = values
        for name in node.input:
            graph.initializer.remove(stored[name])
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        graph.node.remove(node)
    for entries in (model.functions, model.opset_import):
        for entry in [entry for entry in entries if entry.domain == DOMAIN]:
            entries.remove(entry)


def _parts(array: Any) -> dict[str, Any]:
    """Values, the gap from the last to each (to the first one from -1), and the shape."""
    flat, last = array.ravel(), -1
    places: list[int] = []
    for place in np.flatnonzero(flat).tolist():
        places += range(last + _FAR, place, _FAR)
        places.append(place)
        last = place
    there = np.array(places, np.int64)
    gaps = np.diff(there, prepend=-1).astype(np.uint8)
    return {"values": flat[there], "gaps": gaps, "shape": np.array(array.shape, np.int64)}


def _function(opset: int) -> FunctionProto:
    from onnx import TensorProto, helper

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, inputs.split(), [output], **attributes)

    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    nodes = [
        node("Constant", "", "axis", value_int=0),
        node("Constant", "", "one", value_int=1),
        node("Cast", "gaps", "steps", to=TensorProto.INT64),
        node("CumSum", "steps axis", "counts"),
        node("Sub", "counts one", "places"),
        node("ReduceProd", "shape", "size"),
        node("ConstantOfShape", "size", "zeros", value=zero),
        node("ScatterElements", "zeros places values", "flat"),
        node("Reshape", "flat shape", "weight"),
    ]
    imports = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, NAME, ["values", "gaps", "shape"], ["weight"], nodes, imports)
