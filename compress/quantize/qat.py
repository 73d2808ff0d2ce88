"""Quantisation-aware training: a statically quantised file learns, with its integers, what the float file knows.

What trains is the file itself, run by torch: the rounding sits where that of the runtime sits, on the same numbers. So
what is validated is what is deployed, and whatever onnxruntime fuses in the one file it fuses in the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from compress.quantize.fake import along, integers
from compress.quantize.graph_module import PRODUCTS, Code, GraphModule, key
from compress.quantize.scheme import FEW
from compress.recover import lessons
from compress.stage import Context
from kd.errors import InputError
from kd.evaluate import evaluate, inference
from kd.fit import fit

if TYPE_CHECKING:
    from onnx import ModelProto

Source = Literal["float", "teacher", "reference"]
_INT32 = 2.0**31 - 1
_SHOWN = 32  # images at a time: bounds the memory of activations


@dataclass(frozen=True)
class Lesson:
    """How a quantised file is trained.

    Attributes:
        epochs, lr: of the training, which is AdamW's: a step changes weights, biases and scales by about this share of
            what they are, whatever their size, which differs by far among the channels of folded weights.
        source: whom it learns from: the "float" file, the context's "teacher", or the "reference" before all stages.
    """

    epochs: int = 5
    lr: float = 1e-3
    source: Source = "float"

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise InputError("quantize.source", self.source, f"must be one of {', '.join(get_args(Source))}")
        for name in ("epochs", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"quantize.{name}", getattr(self, name), "must be above 0")


class FakeQuantized(GraphModule):
    """A statically quantised file as a module whose weights, biases and scales train, as `integers` of the runtime.

    A parameter holds how many of its units they are, a power of two near the size of a channel's weights, of a bias, of
    a scale: so a step of an optimiser that knows no sizes means the same to all of them, and nothing is rounded.

    Zero points stay as they are, so do constants of one element and what a BatchNorm reads.

    Args:
        coded: as `compress.quantize.integer.Ready` makes it.
        floats: weights before they were rounded, by name; those missing, or rounded elsewhere than to the nearest
            integer, start from the integers.
        most: the largest integer of a weight, that of `coded` or fewer.
    """

    def __init__(self, coded: ModelProto, floats: Mapping[str, Tensor], most: int) -> None:
        super().__init__(coded)
        self._file = coded
        norms = {name for node in self._nodes if node.operator == "BatchNormalization" for name in node.inputs[1:]}
        lone = {name for name, code in self.codes.items() if code.source and self._start(name).numel() == 1}
        self.codes = {name: _narrowed(code, most) for name, code in self.codes.items() if name not in norms | lone}
        self._biases = self._sums()
        sources = {name: code for name, code in self.codes.items() if code.source is not None}
        values = {name: self._unrounded(name, code, floats) for name, code in sources.items()}
        self._scales: set[str] = set()
        for name, code in self.codes.items():
            if code.source is not None:
                self._train(name, values[name], code.axis)
            if name not in self._biases and code.scale not in self._scales:
                self._scales.add(code.scale)
                fewer = code.source is not None and code.high <= FEW
                self._train(code.scale, self._step(name, code) if fewer else self._start(code.scale), 0)
        read = {name for node in self._nodes if node.operator in PRODUCTS for name in node.inputs[1:]}
        self._plain = sorted(name for name in read if key(name) in self._buffers and self._start(name).numel() > 1)
        for name in self._plain:  # products in float, and biases that they add in float
            self._train(name, self._start(name))

    def constant(self, name: str) -> Tensor | None:
        """Weights as their integers stand for them; biases as they are, for their steps are too fine to matter."""
        if key(name) not in self._parameters:
            return super().constant(name)
        value = self._units(name)
        if name in self._scales:
            return value.abs()
        if name not in self.codes or name in self._biases:
            return value
        code, scale = self.codes[name], self.constant(self.codes[name].scale)
        assert scale is not None
        return code.rounded(value, scale)

    @torch.no_grad()
    def coded(self) -> ModelProto:
        """The file, with what was learnt."""
        from onnx import ModelProto, numpy_helper

        model, learnt = ModelProto(), self._learnt()
        model.CopyFrom(self._file)
        for tensor in model.graph.initializer:
            if tensor.name in learnt:
                before = numpy_helper.to_array(tensor)
                value = learnt[tensor.name].cpu().numpy().reshape(before.shape).astype(before.dtype)
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return model

    def _learnt(self) -> dict[str, Tensor]:
        """Initialisers of the file by name."""
        values = {name: self._now(name).abs() for name in self._scales} | {n: self._now(n) for n in self._plain}
        for name, (left, right) in self._biases.items():  # beside tiny weights a bias would need more than 32 bits
            least = (self._now(name).abs() / (values[left] * _INT32)).view(-1)
            values[right] = values[right].maximum(least if values[right].dim() else least.max())
        for name, code in self.codes.items():
            value = self._now(name) if code.source is not None else None
            if name in self._biases:
                left, right = self._biases[name]
                values[code.scale] = values[left] * values[right]
                value = self._now(name).double()
            if value is not None and code.source is not None:
                whole = integers(value, values[code.scale].to(value), code.low, code.high, code.axis)
                values[code.source] = whole + code.zero
        return values

    def _sums(self) -> dict[str, tuple[str, str]]:
        """For each bias of 32 bits the names of the scales of the factors of the product that it is added to."""
        return {
            bias: (self.codes[left].scale, self.codes[right].scale)
            for left, right, bias in (node.inputs[:3] for node in self._nodes if len(node.inputs) > 2)
            if bias in self.codes and self.codes[bias].high == _INT32
        }

    def _step(self, name: str, code: Code) -> Tensor:
        """Where the scale of few bits starts (Esser et al. 2020, section 2.1)."""
        size = self._now(name).abs()
        return 2 * size.mean(_others(size, code.axis)) / code.high**0.5

    def _unrounded(self, name: str, code: Code, floats: Mapping[str, Tensor]) -> Tensor:
        """What was rounded to the integers; where something else was, the integers."""
        assert code.source is not None
        start = self._start(name)
        value, step = floats.get(code.source.removesuffix("_quantized"), start), self._start(code.scale)
        half = along(step, code.axis, start) / 2 + torch.finfo(start.dtype).eps * start.abs()  # of integers of 32 bits
        return torch.where((value - start).abs() <= half, value, start)

    def _start(self, name: str) -> Tensor:
        return self.get_buffer(key(name))

    def _now(self, name: str) -> Tensor:
        return self._units(name).detach()

    def _units(self, name: str) -> Tensor:
        return self.get_parameter(key(name)) * self.get_buffer(_unit(name))

    def _train(self, name: str, value: Tensor, axis: int | None = None) -> None:
        """Make a parameter of a constant, whose slices along `axis` have units of their own."""
        others = _others(value, axis)
        size = value.detach().square().mean(others, keepdim=True).sqrt() if others else value.detach().abs()
        unit = torch.where(size > 0, size, 1).log2().round().exp2()
        delattr(self, key(name))
        self.register_buffer(_unit(name), unit, persistent=False)
        self.register_parameter(key(name), nn.Parameter(value.detach() / unit))


def _others(x: Tensor, axis: int | None) -> list[int]:
    """The dimensions of a slice along `axis`, all where that is None."""
    return [place for place in range(x.dim()) if axis is None or place != axis % x.dim()]


def _unit(name: str) -> str:
    return f"{key(name)}_unit"


def _narrowed(code: Code, most: int) -> Code:
    """Signed weights, of which there is one negative byte more than positive ones, up to `most`."""
    return replace(code, low=-most, high=most) if code.source is not None and code.high == 127 else code


def trained(
    model: ModelProto, static: ModelProto, most: int, context: Context, lesson: Lesson
) -> tuple[ModelProto, dict[str, Any], list[str]]:
    """What becomes of a statically quantised file as it trains; also figures for a report, and what is to be said.

    What comes out is never worse on validation than what came in. In `context.folder` a training that was killed goes
    on.

    Args:
        model: the float graph, its constants folded.
        static: the same quantised, with weights of as many bits as onnxruntime takes.
        most: the largest integer that weights may become.

    Raises:
        InputError: (field `quantize.mode`) the graph has an operator that has no gradient here, or integers ruin it.
    """
    teacher, data = GraphModule(model), context.data
    student = FakeQuantized(static, teacher.constants(), most)
    untrained = student.coded()
    with inference(student):
        if not all(student(some).isfinite().all() for some in context.images().split(_SHOWN)):
            told = "in integers it gives NaN or infinite logits, as where they round a divisor to zero"
            raise InputError("quantize.mode", "qat", told)
    before = evaluate(student, data.evaluation("val")).top1
    if lesson.source == "float":
        regime, notes = lessons(student, replace(context, reference=teacher), "reference")
    else:
        regime, notes = lessons(student, context, lesson.source)
    schedule = replace(context.fit, epochs=lesson.epochs, lr=lesson.lr, optimizer="adamw", warmup_epochs=0)
    history = fit(regime, data, schedule, context.folder, context.accelerator, label="qat")
    details = {"top1_before": before, "top1_after": max(before, history.best_top1), "curve": history.epochs}
    if history.best_top1 < before:
        notes.append(f"Training only reached {history.best_top1:.2f}% of {before:.2f}% on validation: undone.")
        return untrained, details, notes
    return student.coded(), details, notes
