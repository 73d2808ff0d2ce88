"""ONNX's operators as torch functions with gradients: those of which classifiers are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# by their numbers in ONNX's TensorProto
_TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else x.clamp(low, high)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return x.softmax(axis)


def _layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.layer_norm(x, x.shape[axis:], scale.expand(x.shape[axis:]), bias, epsilon)


def _batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    """One that was left in the graph: its statistics are constants."""
    return F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _reduced(
    how: Callable[..., Tensor],
    x: Tensor,
    axes: Tensor | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    places = [] if axes is None else axes.tolist()
    if not places and noop_with_empty_axes:
        return x
    return how(x, dim=places or list(range(x.dim())), keepdim=bool(keepdims))


def _pad(x: Tensor, before_after: Sequence[int], value: float) -> Tensor:
    """ONNX lists all beginnings and then all ends; torch pairs, the last dimension first."""
    half = len(before_after) // 2
    pairs = [(before_after[place], before_after[place + half]) for place in reversed(range(half))]
    return F.pad(x, [number for pair in pairs for number in pair], value=value)


def _spatial(x: Tensor, pads: Sequence[int] | None, value: float) -> tuple[Tensor, list[int]]:
    """The images and the padding that is the same on both sides, or the images padded where it is not."""
    count = x.dim() - 2
    ends = list(pads or [0] * 2 * count)
    return (x, ends[:count]) if ends[:count] == ends[count:] else (_pad(x, ends, value), [0] * count)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    group: int = 1,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> Tensor:
    _only("Conv", auto_pad=auto_pad)
    x, ends = _spatial(x, pads, 0.0)
    ones, zeros = [1] * len(ends), [0] * len(ends)
    return torch.convolution(x, weight, bias, strides or ones, ends, dilations or ones, False, zeros, group)


def _max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    storage_order: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    _only("MaxPool", auto_pad=auto_pad, kernel_shape=kernel_shape)
    x, ends = _spatial(x, pads, -torch.inf)
    step, gaps = list(strides or [1, 1]), list(dilations or [1, 1])
    return F.max_pool2d(x, list(kernel_shape), step, ends, gaps, bool(ceil_mode))


def _average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    _only("AveragePool", auto_pad=auto_pad, kernel_shape=kernel_shape)
    ends = list(pads or [0, 0, 0, 0])
    if ends[:2] != ends[2:]:
        raise NotImplementedError("AveragePool with another padding at the end than at the beginning")
    step = list(strides or [1, 1])
    return F.avg_pool2d(x, list(kernel_shape), step, ends[:2], bool(ceil_mode), bool(count_include_pad))


def _only(name: str, auto_pad: str, kernel_shape: Sequence[int] = (1, 1)) -> None:
    if auto_pad not in ("NOTSET", "VALID"):
        raise NotImplementedError(f"{name} with auto_pad {auto_pad}")
    if len(kernel_shape) != 2:
        raise NotImplementedError(f"{name} of {len(kernel_shape)} dimensions")


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # ONNX's names
    transB: int = 0,
) -> Tensor:
    product = (a.t() if transA else a) @ (b.t() if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def _reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    sizes = shape.tolist()
    return x.reshape(sizes if allowzero else [size or x.shape[place] for place, size in enumerate(sizes)])


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(x.shape[:axis].numel(), -1)


def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(*(perm or reversed(range(x.dim()))))


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    count = x.dim() + axes.numel()
    return reduce(torch.unsqueeze, sorted(axis % count for axis in axes.flatten().tolist()), x)


def _concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


def _split(
    x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Tensor, ...]:
    if sizes is not None:
        return x.split(sizes.tolist(), axis)
    assert num_outputs is not None
    return x.split(-(-x.shape[axis] // num_outputs), axis)


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    count = starts.numel()
    places = range(count) if axes is None else axes.tolist()
    strides = [1] * count if steps is None else steps.tolist()
    window = [slice(None)] * x.dim()
    for place, start, end, step in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
        if step < 1:
            raise NotImplementedError("Slice that runs backwards")
        size = x.shape[place]  # the end of all is written as 2^63 - 1
        window[place] = slice(min(max(start, -size), size), min(max(end, -size), size), step)
    return x[tuple(window)]


def _gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    picked = x.index_select(axis, (indices % x.shape[axis]).flatten())
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis % x.dim() + 1 :])


def _gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        raise NotImplementedError("GatherND within a batch")
    return x[tuple(indices.unbind(-1))]


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, shape.tolist()))


def _pad_operator(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: str = "constant"
) -> Tensor:
    if mode != "constant" or axes is not None:
        raise NotImplementedError(f"Pad of mode {mode}")
    return _pad(x, pads.tolist(), 0.0 if value is None else value.item())


def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], device=x.device)


def _cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    if to not in _TYPES:
        raise NotImplementedError(f"Cast to ONNX's type {to}")
    return x.to(_TYPES[to])


def _range(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype, device=start.device)


def _cumsum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    if exclusive or reverse:
        raise NotImplementedError("CumSum that is exclusive or reverse")
    return x.cumsum(int(axis))


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": lambda x, y: x + y,
    "Sum": lambda *parts: reduce(torch.add, parts),
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "Div": _divide,
    "Pow": lambda x, y: x**y,
    "Max": lambda *parts: reduce(torch.maximum, parts),
    "Min": lambda *parts: reduce(torch.minimum, parts),
    "Equal": lambda x, y: x == y,
    "Not": lambda x: ~x,
    "Where": lambda condition, x, y: torch.where(condition, x, y),
    "Sqrt": lambda x: x.sqrt(),
    "Exp": lambda x: x.exp(),
    "Neg": lambda x: -x,
    "Erf": lambda x: x.erf(),
    "Sin": lambda x: x.sin(),
    "Cos": lambda x: x.cos(),
    "Tanh": lambda x: x.tanh(),
    "Sigmoid": lambda x: x.sigmoid(),
    "Relu": lambda x: x.relu(),
    "Identity": lambda x: x,
    "HardSwish": lambda x: F.hardswish(x),
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Clip": _clip,
    "Gelu": _gelu,
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "ReduceMean": partial(_reduced, torch.mean),
    "ReduceSum": partial(_reduced, torch.sum),
    "ReduceMax": partial(_reduced, torch.amax),
    "ReduceL2": partial(_reduced, torch.linalg.vector_norm),
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": lambda x, y: x @ y,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Expand": _expand,
    "Pad": _pad_operator,
    "Shape": _shape,
    "Cast": _cast,
    "Range": _range,
    "CumSum": _cumsum,
}
