"""Fake quantisation: float numbers that stand only where integers can, with gradients to what they were and to the
step between them."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor


def integers(x: Tensor, scale: Tensor, low: float, high: float, axis: int | None = None) -> Tensor:
    """The integers, less their zero point, that ONNX's QuantizeLinear makes of `x`: ties go to the even one.

    Args:
        scale: the step from one integer to the next: one, or one for each slice of `x` along `axis`.
        low, high: the first and the last integer, less the zero point.
    """
    return (x / along(scale, axis, x)).round().clamp(low, high)


def fake_quantized(
    x: Tensor, scale: Tensor, low: float, high: float, axis: int | None = None, samples: int = 1
) -> Tensor:
    """What `integers` stand for: scale times integer.

    Gradients pass through the rounding as if it were not there, and to the scale from what rounding and clipping do,
    divided by the square root of how many numbers it is the scale of (Esser et al., Learned step size quantization,
    2020, eq. 3, 5 and section 2.2).

    Args:
        samples: how many images `x` is about, 1 where it is a weight.
    """
    quantized: Tensor = _Rounded.apply(x, along(scale, axis, x), low, high, samples)
    return quantized


def along(scale: Tensor, axis: int | None, x: Tensor) -> Tensor:
    """`scale` in the shape in which it meets the slices of `x`."""
    if scale.dim() == 0 or axis is None:
        return scale
    return scale.view([-1 if place == axis % x.dim() else 1 for place in range(x.dim())])


class _Rounded(torch.autograd.Function):
    """`fake_quantized` in few passes over memory: written out in autograd's operations it takes three times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float, samples: int) -> Tensor:
        steps = x / scale
        quantized = steps.round().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(steps, quantized, scale)
        ctx.limits = low, high
        ctx.weight = 1 / sqrt(x.numel() / scale.numel() / samples * max(-low, high))
        return quantized

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        steps, quantized, scale = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(gradient, steps, *ctx.limits)  # zero from the limits outwards
        if not ctx.needs_input_grad[1]:
            return inside, None, None, None, None
        # inside of the limits the integer less the unrounded number of steps, from them on the limit
        to_scale = (gradient * quantized).sum_to_size(scale.shape) / scale - (inside * steps).sum_to_size(scale.shape)
        return inside, ctx.weight * to_scale, None, None, None
