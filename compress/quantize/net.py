"""`Net`: a float graph on its way to integers: the layers whose weights are stored, and what flows between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.onnx_graph import observed

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_PIXELS = 1 << 13  # of the images that flow at a time: bounds the memory of activations
KINDS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A convolution or a matrix product of what flows, `x`, with a stored weight.

    Attributes:
        node: of the graph.
        attributes: of the node.
        bias: name of the stored vector that is added to its products and nothing else, or None.
    """

    node: NodeProto
    attributes: dict[str, Any]
    bias: str | None

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.node.op_type

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def x(self) -> str:
        """The tensor that it reads."""
        return self.node.input[0]

    @property
    def weight(self) -> str:
        """The stored array, which no other node reads."""
        return self.node.input[1]

    @property
    def turned(self) -> bool:
        """Whether the output is the last dimension of the weight, not the first."""
        return self.kind == "MatMul" or (self.kind == "Gemm" and not self.attributes.get("transB"))

    @property
    def groups(self) -> int:
        return self.attributes.get("group", 1)

    def rows(self, weight: Any) -> Any:
        """The weight as (out, fan in), a view."""
        return weight.T if self.turned else weight.reshape(len(weight), -1)

    def inputs(self, weight: Tensor) -> Tensor:
        """The weight as (groups, channels that a group reads, its outputs, taps), a view."""
        if self.kind != "Conv":
            return (weight if self.turned else weight.T)[None, :, :, None]
        return weight.flatten(2).unflatten(0, (self.groups, -1)).transpose(1, 2)

    def whole(self, rows: Any, shape: tuple[int, ...]) -> Any:
        """A weight of that shape from its rows."""
        return rows.T if self.turned else rows.reshape(shape)

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Its products for `x`, whose first dimension is free, without the bias: (..., out) or (N, out, H, W)."""
        if self.kind != "Conv":
            return x @ self.rows(weight).T
        stride, dilation, padded = self._window()
        return F.conv2d(F.pad(x, padded), weight, None, stride, 0, dilation, self.groups)

    def columns(self, x: Tensor, weight: Tensor) -> Tensor:
        """What each weight of a row meets: (groups, positions, fan in)."""
        if self.kind != "Conv":
            return x.reshape(1, -1, x.shape[-1])
        stride, dilation, padded = self._window()
        found = F.unfold(F.pad(x, padded), tuple(weight.shape[2:]), dilation, 0, stride)  # (N, C k k, positions)
        return found.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)

    def _window(self) -> tuple[tuple[int, int], tuple[int, int], list[int]]:
        """Stride, dilation and the padding as torch's `pad` wants it."""
        (down, right), (high, wide) = (self.attributes.get(name, (1, 1)) for name in ("strides", "dilations"))
        top, left, below, beside = self.attributes.get("pads", (0, 0, 0, 0))
        return (down, right), (high, wide), [left, beside, top, below]


class Net:
    """A float graph, BatchNorms folded, whose weights may change and whose tensors can be looked at.

    Args:
        model: the graph, with the types of its tensors inferred. It is changed in place.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        graph = model.graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[NodeProto | None]] = defaultdict(list)  # None: it is an output
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        for value in graph.output:
            self.readers[value.name].append(None)
        self.layers = [layer for node in graph.node if (layer := self._layer(node))]

    def __getitem__(self, name: str) -> np.ndarray:
        """A stored array, which is not to be changed."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self._stored[name])

    def stores(self, name: str) -> bool:
        return name in self._stored

    def __setitem__(self, name: str, array: np.ndarray) -> None:
        from onnx import numpy_helper

        self._stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))

    def add(self, layer: Layer, amount: np.ndarray) -> None:
        """Add (out,) to what a layer answers, by its bias; a matrix product that has none is left alone."""
        from onnx import numpy_helper

        if layer.bias is not None:
            self[layer.bias] = self[layer.bias] + amount.astype(np.float32)
        elif layer.kind != "MatMul" and len(layer.node.input) == 2:
            layer.node.input.append(f"{layer.weight}.bias")
            self.model.graph.initializer.append(numpy_helper.from_array(amount.astype(np.float32), layer.node.input[2]))

    @property
    def floats(self) -> list[str]:
        """The names of all float tensors that flow."""
        from onnx import TensorProto

        graph = self.model.graph
        values = (*graph.input, *graph.value_info, *graph.output)
        written = {name for node in graph.node for name in node.output} | {graph.input[0].name}
        kind = TensorProto.FLOAT
        return [value.name for value in values if value.name in written and value.type.tensor_type.elem_type == kind]

    def flow(self, names: Sequence[str], images: Tensor) -> Iterator[dict[str, Tensor]]:
        """What the tensors `names` are for the (n, C, H, W) images, some images at a time."""
        batch = max(1, _PIXELS // images[0, 0].numel())
        for arrays in observed(self.model, names, images.numpy(), batch):
            yield {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _layer(self, node: NodeProto) -> Layer | None:
        from onnx import TensorProto, helper

        if node.op_type not in KINDS or not self._own(node.input[1]):
            return None
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        weight = self._stored[node.input[1]]
        plane = len(weight.dims) == (4 if node.op_type == "Conv" else 2)
        plain = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and not attributes.get("transA")
        plain &= attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
        if weight.data_type != TensorProto.FLOAT or not plane or not plain:
            return None
        adder = self.reader(node.output[0])
        there: Sequence[str] = node.input[2:]
        if node.op_type == "MatMul" and adder is not None and adder.op_type == "Add":
            there = adder.input
        vectors = [name for name in there if self._own(name) and len(self._stored[name].dims) == 1]
        return Layer(node, attributes, vectors[0] if vectors else None)

    def _own(self, name: str) -> bool:
        return name in self._stored and len(self.readers[name]) == 1

    def reader(self, name: str) -> NodeProto | None:
        """The only node that reads a tensor, None where there are others or none."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 else None
