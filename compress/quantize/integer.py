"""onnxruntime's quantisation, made quiet, and what its runtime makes of the result."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from compress.onnx_model import OnnxModel, session_options, write
from compress.quantize.calibrate import Range, ranges
from compress.quantize.compact import compact
from compress.quantize.equalize import equalize
from compress.quantize.net import KINDS, Net
from compress.quantize.scheme import Scheme
from compress.quantize.weights import Settled, scales, settle, settled
from kd.errors import InputError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_STEPS = "TensorQuantOverrides"
_SCALES = 13  # ONNX's first version with a scale for each channel
_FLOAT = ("InstanceNormalization",)
"""What runs in float anyhow; copies of biases that they share may get a name that is taken."""


def quantized(
    model: OnnxModel, mode: Literal["static", "dynamic"], images: Tensor, path: Path, scheme: Scheme | None = None
) -> OnnxModel:
    """Write `model` with 8-bit weights (signed, symmetric) and activations (unsigned) to `path`.

    Args:
        images: (n, C, H, W) in [0, 1], from which static ranges are found.

    Raises:
        InputError: it is quantised already, or (field `quantize.mode`) onnxruntime cannot quantise such a graph.
    """
    ready = Ready(model, images, scheme or Scheme())
    return ready.dynamic(path) if mode == "dynamic" else ready.static(path)


class Ready:
    """A model whose weights stand where integers will, from which files of integers are written.

    Raises InputError for one that is quantised already, that does not take the images, or (field `quantize.mode`)
    that onnxruntime cannot prepare.

    Attributes:
        graph: which answers as the model does, in float, with its constants folded.
    """

    def __init__(self, model: OnnxModel, images: Tensor, scheme: Scheme) -> None:
        import onnx

        if any("QuantizeLinear" in node.op_type for node in onnx.load(model.path).graph.node):
            raise InputError("stages", "Quantize", f"{model.path.name} is quantised already")
        if tuple(images.shape[1:]) != model.image_shape:
            raise InputError("calibration", tuple(images.shape), f"{model.path.name} takes {model.image_shape}")
        self.images, self.scheme = images, scheme
        net = Net(prepared(model.path))
        if scheme.equalize:
            equalize(net, images)
        self.graph = net.model

    @cached_property
    def net(self) -> Net:
        """With all weights where the static integers will be."""
        return self._net(self._settled)

    @cached_property
    def _settled(self) -> Settled:
        return settled(Net(self.graph), self.images, self.scheme)

    def _net(self, found: Settled) -> Net:
        """A copy with these weights."""
        net = Net(_copy(self.graph))
        settle(net, found)
        return net

    @property
    def others(self) -> list[str]:
        """Layers with a stored weight that keeps 8 bits: they share it, or are of no image's two dimensions."""
        graph, known = self.graph.graph, {layer.name for layer in self.net.layers}
        stored = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
        layers = (node for node in graph.node if node.op_type in (*KINDS, "ConvTranspose"))
        return [node.name for node in layers if node.input[1] in stored and node.name not in known]

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """Of everything that flows."""
        return ranges(self.net, self.net.floats, self.images, self.scheme.calibrate)

    def static(self, path: Path, keep: Sequence[str] = (), only: Sequence[str] = ()) -> OnnxModel:
        """The file of `coded`."""
        return written(self.coded(keep, only), path)

    def coded(self, keep: Sequence[str] = (), only: Sequence[str] = ()) -> ModelProto:
        """The graph whose ranges are fixed: the layers named in `keep` stay in float; `only` those become integers."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        found = {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in self.ranges.items()
        }
        part = {name: new for name, new in self._settled.items() if name not in keep and (not only or name in only)}
        excluded = [node.name for node in self.graph.graph.node if node.op_type in _FLOAT]
        net = self._net(part)
        with _told("static"), _quiet():
            quantizer = QDQQuantizer(
                net.model,
                self.scheme.per_channel,
                self.scheme.reduced,
                QuantType.QInt8,
                QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, found),
                list(only),
                [*excluded, *keep],
                [*QDQRegistry, *QLinearOpsRegistry],
                {_STEPS: scales(net, part)},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        _shield(quantizer.model.model.graph, keep)
        return quantizer.model.model

    def dynamic(self, path: Path) -> OnnxModel:
        """The file that finds the ranges of activations as it runs."""
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # onnxruntime gives the channels of a convolution one scale
        found = settled(Net(self.graph), self.images, self.scheme, together="Conv")
        net = self._net(found)
        with TemporaryDirectory() as folder, _told("dynamic"), _quiet():
            result = Path(folder) / "result.onnx"
            quantize_dynamic(
                net.model,
                result,
                per_channel=self.scheme.per_channel,
                reduce_range=self.scheme.reduced,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_stacks(net.model.graph) if self.scheme.per_channel else None,
                extra_options={_STEPS: scales(net, found)},
            )
            return written(onnx.load(result), path)


def prepared(path: Path) -> ModelProto:
    """The graph in a file with BatchNorms and constants folded and the types of its tensors inferred."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder, _told("static"), _quiet():
        result = Path(folder) / "prepared.onnx"
        model = onnx.load(path)
        if all(entry.version < _SCALES for entry in model.opset_import if entry.domain in ("", "ai.onnx")):
            path = Path(folder) / "converted.onnx"
            onnx.save(onnx.version_converter.convert_version(model, _SCALES), path)
        quant_pre_process(path, result, skip_symbolic_shape=True)  # symbolic: fails on some nets, and adds nothing
        model = onnx.load(result)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type} {number}"  # by which layers are told apart
    return model


def written(model: ModelProto, path: Path) -> OnnxModel:
    """A file of what is quantised, in as few bytes as leave its answers alone."""
    compact(model)
    return write(model, path)


def _shield(graph: GraphProto, names: Sequence[str]) -> None:
    """Sum what these layers answer, alone: as it loads a file, onnxruntime makes integers of float weights, too, whose
    layer stands right between integers, and it takes identities away, but no sums."""
    from onnx import helper

    for node in list(graph.node):
        if node.name in names:
            (output,) = node.output
            node.output[0] = f"{output}.float"
            graph.node.insert(list(graph.node).index(node) + 1, helper.make_node("Sum", [*node.output], [output]))


def _stacks(graph: GraphProto) -> list[str]:
    """Products with several stored matrices at once: onnxruntime writes them with a scale for each channel of all
    together, and then has no kernel for that."""
    stored = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 2}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not stored.isdisjoint(node.input)]


def _copy(model: ModelProto) -> ModelProto:
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def integer_convolutions(path: Path) -> tuple[int, int]:
    """How many convolutions onnxruntime runs in integers once it has fused what it can, and how many there are."""
    import onnx
    import onnxruntime

    with TemporaryDirectory() as folder:
        options = session_options(threads=1)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    integer = kinds["QLinearConv"] + kinds["ConvInteger"]
    return integer, integer + kinds["Conv"] + kinds["FusedConv"]


@contextlib.contextmanager
def _told(mode: str) -> Iterator[None]:
    """onnxruntime raises anything on operators that it does not quantise."""
    try:
        yield
    except Exception as error:
        raise InputError("quantize.mode", mode, f"onnxruntime cannot quantise this net so ({error})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantisation prints and logs what it does."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
