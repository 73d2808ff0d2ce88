"""`GraphModule`: an ONNX classifier run by torch node by node, so that what a file computes has gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.quantize.fake import along, fake_quantized
from compress.quantize.operators import OPERATORS
from kd.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Code:
    """How integers stand for a tensor.

    Attributes:
        scale: name of the constant that holds the step between integers, one or one a slice.
        low, high: the first and the last integer, less the zero point.
        zero: the zero point.
        axis: of the slices; None where there is one scale.
        source: name of the constant that holds the integers; None where they are computed.
    """

    scale: str
    low: float
    high: float
    zero: int = 0
    axis: int | None = None
    source: str | None = None

    def rounded(self, x: Tensor, scale: Tensor, samples: int = 1) -> Tensor:
        """`fake_quantized`."""
        return fake_quantized(x, scale, self.low, self.high, self.axis, samples)


@dataclass(frozen=True)
class Node:
    """An operator, the names of what it reads ("": left out) and makes, and of what nothing reads later."""

    operator: str
    run: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()


class GraphModule(nn.Module):
    """A classifier in ONNX, float or with QuantizeLinear and DequantizeLinear, as a module without parameters.

    A quantised tensor is carried by the numbers that its integers stand for: QuantizeLinear rounds, with the gradients
    of `fake_quantized`, and DequantizeLinear has nothing left to do. To `kd.taps` it offers timm's protocol as far as a
    graph has it: the embedding is what its last product is given; it has no stage maps.

    Args:
        model: without functions of its own; constants folded, as onnxruntime's `quant_pre_process` does.

    Raises:
        InputError: (field `quantize.mode`) there is no such operator here, or no classifier at the end; it is named.
    """

    def __init__(self, model: ModelProto) -> None:
        from onnx import numpy_helper

        super().__init__()
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._input = next(part.name for part in model.graph.input if part.name not in arrays)
        self.image_shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])
        self._names = tuple(arrays)
        aliases, self.codes = _codes(model, arrays)
        for name, array in arrays.items():
            self.register_buffer(key(name), torch.from_numpy(array.copy()), persistent=False)
        for name, code in self.codes.items():
            if code.source is not None:
                value = _decoded(arrays[code.source], arrays[code.scale], code)
                self.register_buffer(key(name), value, persistent=False)
        self._nodes = _nodes(model, aliases, self.codes)
        self._output = aliases.get(model.graph.output[0].name, model.graph.output[0].name)
        self._features, self._cut = self._classifier()
        self._nodes = _forgetting(self._nodes, {self._features, self._output})
        try:
            with torch.no_grad():
                self(torch.zeros(1, *self.image_shape))
        except NotImplementedError as error:
            raise InputError("quantize.mode", "qat", f"there is no gradient here of {error}") from error

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] to (N, classes) logits, in float32."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the classifier is given."""
        with torch.autocast(x.device.type, enabled=False):  # half precision has too few digits for eight bits
            return self._run(self._nodes[: self._cut], self._input, x.float(), self._features)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or (N, features) what they are computed from."""
        if pre_logits:
            return features.flatten(2).mean(2) if features.dim() == 4 else features.flatten(1)
        with torch.autocast(features.device.type, enabled=False):
            return self._run(self._nodes[self._cut :], self._features, features, self._output)

    def forward_intermediates(self, x: Tensor, **_: Any) -> tuple[Tensor, list[Tensor]]:
        """The features, and no stage maps: a graph does not tell its stages."""
        return self.forward_features(x), []

    def get_classifier(self) -> nn.Module:
        return _Head(self)

    def constant(self, name: str) -> Tensor | None:
        """A constant of the graph, decoded where it is stored as integers; None where `name` is computed."""
        return self._buffers.get(key(name))

    def constants(self) -> dict[str, Tensor]:
        """All of them by name."""
        return {name: self.get_buffer(key(name)) for name in self._names}

    def _run(self, nodes: Sequence[Node], given: str, value: Tensor, wanted: str) -> Tensor:
        values: dict[str, Tensor] = {given: value}

        def read(name: str) -> Tensor | None:
            return values[name] if name in values else self.constant(name) if name else None

        for node in nodes:
            outputs = node.run(*map(read, node.inputs))
            values.update(zip(node.outputs, [outputs] if isinstance(outputs, Tensor) else outputs, strict=False))
            for name in node.last:
                values.pop(name, None)
        return values[wanted]

    def _classifier(self) -> tuple[str, int]:
        """The name of what the last product is given, and how many nodes it takes to compute; they are moved first."""
        makers = {name: node for node in self._nodes for name in node.outputs}
        products = [node for node in self._nodes if node.operator in PRODUCTS]
        name = products[-1].inputs[0] if products else ""
        todo, before = [name], set()
        while todo:
            node = makers.get(todo.pop())
            if node is not None and node not in before:
                before.add(node)
                todo += node.inputs
        after = [node for node in self._nodes if node not in before]
        made = {output for node in after for output in node.outputs} | {name, ""}
        apart = all(part in made or self.constant(part) is not None for node in after for part in node.inputs)
        if not (name and apart and self._output in made):
            raise InputError("quantize.mode", "qat", "the graph does not end in one classifier")
        self._nodes = [*(node for node in self._nodes if node in before), *after]
        return name, len(before)


class _Head(nn.Module):
    """The end of a graph, as a layer on its embedding."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self._run = graph.forward_head

    def forward(self, features: Tensor) -> Tensor:
        return self._run(features)


def key(name: str) -> str:
    """A tensor's name as that of a buffer or parameter, of which torch allows no dots and no names of methods."""
    return "/" + name.replace(".", "/")


def _codes(model: ModelProto, arrays: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Code]]:
    """For each output of DequantizeLinear whose integers are computed the name of the integers, and how each quantised
    tensor is coded: such integers, or the outputs of DequantizeLinear that constants become."""
    aliases: dict[str, str] = {}
    codes: dict[str, Code] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            codes[node.output[0]] = _code(node, arrays)
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            codes[node.output[0]] = _code(node, arrays)
        elif node.op_type == "DequantizeLinear":
            aliases[node.output[0]] = node.input[0]
    return aliases, codes


def _code(node: NodeProto, arrays: Mapping[str, Any]) -> Code:
    source = node.input[0] if node.op_type == "DequantizeLinear" else None
    zeros = arrays[node.input[2]] if len(node.input) > 2 else np.zeros((), arrays[node.input[0]].dtype)
    limits, zero = np.iinfo(zeros.dtype), int(zeros.flat[0])
    if (zeros != zero).any():
        raise InputError("quantize.mode", "qat", f"{node.name} has several zero points")
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    many = arrays[node.input[1]].size > 1
    return Code(node.input[1], limits.min - zero, limits.max - zero, zero, axis if many else None, source)


def _decoded(whole: np.ndarray, scale: np.ndarray, code: Code) -> Tensor:
    integers = torch.from_numpy(whole.copy())
    return (integers.float() - code.zero) * along(torch.from_numpy(np.array(scale)), code.axis, integers)


def _nodes(model: ModelProto, aliases: Mapping[str, str], codes: Mapping[str, Code]) -> list[Node]:
    nodes = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            continue
        inputs = tuple(aliases.get(name, name) for name in node.input)
        if node.op_type == "QuantizeLinear":
            code = codes[node.output[0]]
            run: Callable[..., Any] = partial(_rounded, code)
            nodes.append(Node(node.op_type, run, (*inputs[:1], code.scale), tuple(node.output)))
        else:
            nodes.append(Node(node.op_type, _operator(node), inputs, tuple(node.output)))
    return nodes


def _rounded(code: Code, x: Tensor, scale: Tensor) -> Tensor:
    return code.rounded(x, scale, len(x))


def _operator(node: NodeProto) -> Callable[..., Any]:
    from onnx.helper import get_attribute_value

    if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
        raise InputError("quantize.mode", "qat", f"there is no gradient here of {node.op_type}")
    values = {item.name: get_attribute_value(item) for item in node.attribute}
    attributes = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
    if node.op_type == "Split" and len(node.input) == 1:
        attributes.setdefault("num_outputs", len(node.output))
    run = OPERATORS[node.op_type]
    try:
        inspect.signature(run).bind(*node.input, **attributes)
    except TypeError as error:
        raise InputError(
            "quantize.mode", "qat", f"there is no gradient here of such a {node.op_type} ({error})"
        ) from error
    return partial(run, **attributes)


def _forgetting(nodes: Sequence[Node], kept: set[str]) -> list[Node]:
    """Nodes that know what nothing reads after them, so that it need not be kept."""
    seen, told = set(kept), []
    for node in reversed(nodes):
        last = {name for name in (*node.inputs, *node.outputs) if name and name not in seen}
        seen |= last
        told.append(Node(node.operator, node.run, node.inputs, node.outputs, tuple(sorted(last))))
    return told[::-1]
