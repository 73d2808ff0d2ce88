"""`Export`: a classifier as one ONNX file."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress.exporter import TOLERANCE, Exporter, quiet
from compress.onnx_model import INPUT, OUTPUT, OnnxModel, sealed, write
from compress.onnx_sparse import pack
from compress.reparameterize import reparameterized
from kd.data import Data
from kd.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Export(Exporter[OnnxModel]):
    """Write the model as ONNX and go on with the file, on onnxruntime.

    The file stands alone: input "image" are (N, C, H, W) pixels in [0, 1] with N free, normalisation is in the graph,
    output "logits" is (N, classes); class names, image size and normalisation are in its metadata.

    Attributes:
        opset: version of ONNX's operators.
        packed: write weights of which at least half is zero in fewer bytes, see `compress.onnx_sparse`. A runtime has
            to know ONNX's functions for it; `Quantize` makes the weights whole again.
    """

    form, kind = "ONNX", OnnxModel

    opset: int = 18
    packed: bool = False

    def __post_init__(self) -> None:
        if not 18 <= self.opset <= 23:
            raise InputError("export.opset", self.opset, "must be 18 to 23")

    def details(self) -> dict[str, object]:
        return {"opset": self.opset}

    def content(self, model: nn.Module, images: Tensor, facts: dict[str, str], data: Data) -> bytes:
        proto = convert(model, images, self.opset)
        if self.packed:
            pack(proto)
        for key, value in facts.items():
            proto.metadata_props.add(key=key, value=value)
        return sealed(proto)

    def check(self, exported: OnnxModel, model: nn.Module, images: Tensor, data: Data) -> None:
        import onnx

        onnx.checker.check_model(str(exported.path), full_check=True)
        super().check(exported, model, images, data)


def convert(model: nn.Module, images: Tensor, opset: int) -> ModelProto:
    """The graph of a module in evaluation mode, BatchNorms folded, with a free batch size.

    Raises InputError that names the operator, or what else stands in the way.
    """
    try:
        proto = _exported(model, images, opset)
    except torch.onnx.OnnxExporterError as error:
        try:  # fused attention has a form for four dimensions only, its matrix products for any
            proto = _exported(_unfused(model), images, opset)
        except torch.onnx.OnnxExporterError:
            raise InputError("export", type(model).__name__, f"has no ONNX form: {_cause(error)}") from error
    _strip(proto)
    return proto


def deployed(model: nn.Module, images: Tensor, path: Path) -> OnnxModel:
    """The file that a model would become, for its speed: its answers are not compared."""
    return write(convert(reparameterized(model, images, TOLERANCE)[0], images, Export.opset), path)


def _exported(model: nn.Module, images: Tensor, opset: int, optimize: bool = True) -> ModelProto:
    from onnx_ir.passes.common import NameFixPass

    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (images[:1].repeat(2, 1, 1, 1),),  # two: a batch of one would be taken for a constant
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: batch},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=False,
            optimize=optimize,
            verbose=False,
        )
    assert program is not None
    NameFixPass()(program.model)  # without its optimiser the exporter may give two values one name
    proto = program.model_proto
    if optimize and not _closed(proto):  # where one tensor is clipped twice, its optimiser loses the limits
        return _exported(model, images, opset, optimize=False)
    return proto


def _closed(proto: ModelProto) -> bool:
    """Whether all that nodes read is there."""
    graph = proto.graph
    known = {part.name for part in (*graph.input, *graph.initializer)} | {
        name for node in graph.node for name in node.output
    }
    return all(name in known for node in graph.node for name in node.input if name)


def _unfused(model: nn.Module) -> nn.Module:
    """A copy of which timm's attentions write out their products."""
    made = copy.deepcopy(model)
    for module in made.modules():
        if hasattr(module, "fused_attn"):
            vars(module)["fused_attn"] = False
    return made


def _cause(error: BaseException) -> str:
    """The innermost cause names the operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0]


def _strip(proto: ModelProto) -> None:
    """Drop stack traces and other traces of the exporter: they hold paths of this machine and grow the file."""
    graph = proto.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info, graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
