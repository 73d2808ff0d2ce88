"""onnxruntime's quantisation, made quiet, and what its runtime makes of the result."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from compress.onnx_model import OnnxModel, session_options, write
from kd.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto

RANGES = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


def quantized(
    model: OnnxModel,
    mode: Literal["static", "dynamic"],
    images: Tensor,
    path: Path,
    per_channel: bool = True,
    reduce_range: bool = False,
    calibrate: str = "minmax",
) -> OnnxModel:
    """Write `model` with 8-bit weights (signed, symmetric) and activations (unsigned) to `path`.

    Args:
        images: (n, C, H, W) in [0, 1], from which static ranges are found.
        calibrate: how: a key of RANGES.

    Raises:
        InputError: it is quantised already, or (field `quantize.mode`) onnxruntime cannot quantise such a graph.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic, quantize_static

    graph = onnx.load(model.path).graph
    if any("QuantizeLinear" in node.op_type for node in graph.node):
        raise InputError("stages", "Quantize", f"{model.path.name} is quantised already")
    common = {"per_channel": per_channel, "reduce_range": reduce_range, "weight_type": QuantType.QInt8}
    with TemporaryDirectory() as folder, _quiet():
        result = Path(folder) / "result.onnx"
        try:
            if mode == "dynamic":
                quantize_dynamic(prepared(model.path), result, **common)
            else:
                quantize_static(
                    prepared(model.path),
                    result,
                    _Reader(model, images),
                    activation_type=QuantType.QUInt8,
                    calibrate_method=CalibrationMethod[RANGES[calibrate]],
                    # these run in float anyhow, and copies of biases that they share may get a name that is taken
                    nodes_to_exclude=[node.name for node in graph.node if node.op_type == "InstanceNormalization"],
                    extra_options={"CalibTensorRangeSymmetric": False},  # the default wastes a bit after a ReLU
                    **common,
                )
        except Exception as error:  # onnxruntime raises anything on operators that it does not quantise
            raise InputError("quantize.mode", mode, f"onnxruntime cannot quantise this net so ({error})") from error
        return write(onnx.load(result), path)


def prepared(path: Path) -> ModelProto:
    """The graph in a file, as it is before it is quantised: with BatchNorms and constants folded."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder, _quiet():
        result = Path(folder) / "prepared.onnx"
        quant_pre_process(path, result, skip_symbolic_shape=True)  # it fails on some nets, and adds nothing
        return onnx.load(result)


def saturates() -> bool:
    """Whether this processor adds products of unsigned and signed bytes in 16 bits, too few: x86 without VNNI."""
    facts = torch.cpu.get_capabilities()
    return x86() and not (facts["avx512_vnni"] or facts["avx_vnni"])


def x86() -> bool:
    return torch.cpu.get_capabilities()["architecture"] == "x86_64"


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


class _Reader:
    """onnxruntime's protocol for calibration data: one image at a time, then None."""

    def __init__(self, model: OnnxModel, images: Tensor) -> None:
        self._name = model.session.get_inputs()[0].name
        self._images = iter(images.split(1))

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._images, None)
        return None if image is None else {self._name: image.numpy()}


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
