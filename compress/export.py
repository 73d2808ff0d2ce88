"""`Export`: a classifier as one ONNX file, checked against torch."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress.artefact import ONNX
from compress.onnx_model import INPUT, OUTPUT, OnnxModel, write
from compress.onnx_sparse import pack
from compress.reparameterize import reparameterized
from compress.stage import Artefact, Context, Report, check_logits
from kd.data import Data
from kd.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto

TOLERANCE = 1e-4  # of the logits' scale: what float32 rounding may differ by between two runtimes
_CHECKED = 256  # validation images that both runtimes are compared on
_FEW = 8  # of them, that the branches of a net are compared on with the layers that they become


@dataclass(frozen=True)
class Export:
    """Write the model as ONNX and go on with the file, on onnxruntime.

    The file stands alone: input "image" are (N, C, H, W) pixels in [0, 1] with N free, normalisation is in the graph,
    output "logits" is (N, classes); class names, image size and normalisation are in its metadata. Nets that train
    branches in the place of a layer (RepVGG, MobileOne, ...) are written with the layer, so Prune and LowRank, which
    see the branches, come before.

    Attributes:
        opset: version of ONNX's operators.
        packed: write weights of which at least half is zero in fewer bytes, see `compress.onnx_sparse`. A runtime has
            to know ONNX's functions for it; `Quantize` makes the weights whole again.
    """

    opset: int = 18
    packed: bool = False

    def __post_init__(self) -> None:
        if not 18 <= self.opset <= 23:
            raise InputError("export.opset", self.opset, "must be 18 to 23")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError where the model is a file already, has no ONNX form, or answers otherwise in it."""
        if isinstance(model, OnnxModel):
            raise InputError("stages", "Export", f"{model.path} is exported already")
        exported, left = self._write(model, context.data, context.folder / ONNX)
        notes = (
            (f"Left in their branches, which edits keep from becoming one layer: {', '.join(left)}.",) if left else ()
        )
        details = {"opset": self.opset, "file_bytes": exported.path.stat().st_size}
        return exported, Report("export", notes, details)

    def write(self, model: nn.Module, data: Data, path: Path) -> OnnxModel:
        """Export to `path`, where nothing is written unless the file answers as torch does on validation images."""
        return self._write(model, data, path)[0]

    def _write(self, model: nn.Module, data: Data, path: Path) -> tuple[OnnxModel, list[str]]:
        """The file, and what `reparameterized` left as it was."""
        model = copy.deepcopy(model).cpu().float().eval()
        images = next(data.evaluation("val", _CHECKED)).x
        deployed, left = reparameterized(model, images[:_FEW], TOLERANCE)
        proto = convert(deployed, images, self.opset)
        if self.packed:
            pack(proto)
        for key, value in _metadata(model, data).items():
            proto.metadata_props.add(key=key, value=value)
        with TemporaryDirectory() as folder:
            _check(write(proto, Path(folder) / ONNX), model, images, data)
        return write(proto, path), left


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
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with _quiet(), torch.no_grad():
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


def _metadata(model: nn.Module, data: Data) -> dict[str, str]:
    facts, blueprint = data.facts, getattr(model, "blueprint", None)
    return {
        "classes": json.dumps(facts.names),
        "channels": str(facts.channels),
        "image_size": json.dumps(facts.image_size),
        "pixels": "0 to 1, not normalised: the graph does it",
        "normalize": json.dumps(getattr(blueprint, "normalize", None)),
        "retort": _version(),
    }


def _version() -> str:
    try:
        return version("retort")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _check(exported: OnnxModel, model: nn.Module, images: Tensor, data: Data) -> None:
    """Raise InputError unless both answer alike, as a batch and one image alone, about the classes of the data.

    Where they do within the tolerance, they also choose the same class but for ties.
    """
    import onnx

    onnx.checker.check_model(str(exported.path), full_check=True)
    with torch.no_grad():
        expected = model(images)
    check_logits(expected, data, type(model).__name__)
    found = torch.cat([exported(images[:1]), exported(images)[1:]])
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not error < TOLERANCE:
        raise InputError("export", type(model).__name__, f"answers otherwise in ONNX: {error:.1e} of the logits' scale")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings speak to its developers."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
