"""What an artefact costs beside time: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import students
from compress.coded_model import CodedModel
from compress.onnx_graph import count
from compress.onnx_model import OnnxModel
from kd.evaluate import inference
from students.edits import shallow
from students.meta import swift_recurrence


@dataclass(frozen=True)
class Cost:
    """Size and work of an artefact.

    Attributes:
        params: elements of its parameters.
        nonzero: those of them that are not zero.
        macs: multiply-accumulates per image, of convolutions and matrix products; no measure of speed.
        file_bytes: of its files.
    """

    params: int
    nonzero: int
    macs: int
    file_bytes: int


def measure(model: nn.Module | OnnxModel, image_shape: tuple[int, int, int]) -> Cost:
    """The cost of a model for (C, H, W) images.

    A module counts its parameters (no buffers, shared ones once), an ONNX file its initialisers: see
    `compress.onnx_graph.count`, a coded file those that it is decoded to. The files of a module are those that
    `students.save` writes, or its weights alone where it is no Classifier.
    """
    if isinstance(model, OnnxModel):
        return Cost(*count(model.path), model.path.stat().st_size)
    parameters = list(model.parameters())
    return Cost(
        params=sum(parameter.numel() for parameter in parameters),
        nonzero=sum(int(parameter.count_nonzero()) for parameter in parameters),
        macs=macs(model, image_shape),
        file_bytes=_file_bytes(model),
    )


class Sketch(NamedTuple):
    """Parameters and multiply-accumulates of a model that need not be built."""

    params: int
    macs: int


def sketch(blueprint: students.Blueprint) -> Sketch:
    """What `measure` would tell of the built model, in well under a second: nothing is allocated or computed.

    Raises InputError where it cannot be built.
    """
    model, work = drawn(blueprint)
    return Sketch(sum(parameter.numel() for parameter in model.parameters()), work)


def drawn(blueprint: students.Blueprint) -> tuple[students.Classifier, int]:
    """The model on the meta device, and the multiply-accumulates of an image of its size, in one pass.

    Raises InputError where it cannot be built.
    """
    size = blueprint.image_size
    try:
        model = blueprint.build("meta", tried=False)  # counting tries it
        return model, macs(model, (blueprint.in_chans, size, size))
    except Exception:
        blueprint.build("meta")  # which tells what is wrong with it
        raise


def macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one (C, H, W) image through `model` in evaluation mode, also on the meta device."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    model = shallow(model)  # some nets keep tensors of a pass, here with gradients
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _of_recurrence})
    # with gradients: without, the counter's hooks fail on a parameter that is handed to a module (timm's class tokens)
    with inference(model), torch.enable_grad(), plain_attention(), swift_recurrence(), counter:
        model(torch.zeros(1, *image_shape, device=device))
    return counter.get_total_flops() // 2


def _of_recurrence(x: Any, inputs: Any, states: Any, *_: Any, **__: Any) -> int:
    """Of shapes (steps, N, width), (gates, width) and (gates, state): the counter does not know the CPU's LSTM."""
    return 2 * x[0] * x[1] * (prod(inputs) + prod(states))


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as the matrix products that it is: whoever watches operations does not know the fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _file_bytes(model: nn.Module) -> int:
    if isinstance(model, CodedModel):
        return model.path.stat().st_size
    if not isinstance(model, students.Classifier):
        return len(safetensors_bytes({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
    with TemporaryDirectory() as folder:
        students.save(model, Path(folder))
        return sum(file.stat().st_size for file in Path(folder).iterdir())
