"""Weights as multiples of a step: by what is rounded where, and what that adds to biases."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from compress.quantize.net import Layer, Net
from compress.quantize.scheme import FEW, Scheme

_POSITIONS = 1 << 6  # of one image, that second moments are made of
_LEAST = 1e-6  # of the error of a row: less is not worth turning a weight
_SHARES = torch.linspace(1, 0.3, 36)  # of the largest weight, that are tried for few integers


class Rounding(NamedTuple):
    """What becomes of a layer.

    Attributes:
        weight: all multiples of the step.
        step: (out, 1), or () for all.
        amount: (out,) that is added to its bias.
    """

    weight: np.ndarray
    step: Tensor
    amount: np.ndarray | None


Settled = dict[str, Rounding]
"""By the name of a layer."""


def settled(net: Net, images: Tensor, scheme: Scheme, together: str = "") -> Settled:
    """Weights on their integers' places, and mended biases, by what flows in the net for the images.

    The channels of layers of the kind `together` have one step in any case.
    """
    means, moments = _moments(net, images, scheme)
    found: Settled = {}
    for layer in net.layers:
        weight = _tensor(net, layer)
        rows = layer.rows(weight)
        step = steps(rows, replace(scheme, per_channel=scheme.per_channel and layer.kind != together))
        integers = nearest(rows, step, scheme.most)
        if scheme.rounding == "learned":
            integers = learned(rows, step, scheme.most, moments[layer.name])
        rounded = layer.whole(step * integers, tuple(weight.shape))
        amount = -drift(layer, means[layer.name], rounded - weight).numpy() if scheme.correct_bias else None
        found[layer.name] = Rounding(rounded.numpy(), step, amount)
    return found


def settle(net: Net, found: Settled) -> None:
    """Give the layers that are found their new weights and biases."""
    for layer in net.layers:
        if layer.name in found:
            net[layer.weight] = found[layer.name].weight
            if (amount := found[layer.name].amount) is not None:
                net.add(layer, amount)


def scales(net: Net, found: Settled) -> dict[str, list[dict[str, Any]]]:
    """The steps of the layers that are found, as onnxruntime's quantisers take them ("TensorQuantOverrides")."""
    told = {}
    for layer in net.layers:
        if layer.name in found:
            step = found[layer.name].step
            axis = {"axis": int(layer.turned)} if step.dim() else {}
            told[layer.weight] = [axis | {"scale": np.float32(each), "zero_point": 0} for each in step.flatten()]
    return told


def steps(rows: Tensor, scheme: Scheme) -> Tensor:
    """What integers stand for multiples of: the last for the largest weight, of a row, (out, 1), or of all, ().

    Few integers leave less of a squared error where the last stands for less and the largest weights are clipped.
    """
    each = rows if scheme.per_channel else rows.reshape(1, -1)
    far = each.abs().amax(1, keepdim=True)
    widest = torch.where(far > 0, far, 1.0) / scheme.most
    tries = [_half(widest * share) for share in (_SHARES if scheme.most <= FEW else _SHARES[:1])]
    errors = [(step * nearest(each, step, scheme.most) - each).square().sum(1) for step in tries]
    best = torch.stack(errors).argmin(0)
    found = torch.stack(tries)[best, torch.arange(len(each))]
    return found if scheme.per_channel else found.squeeze()


def _half(step: Tensor) -> Tensor:
    """The next number in half precision, where that has enough of it: files then take two bytes for each."""
    return torch.where(step > torch.finfo(torch.half).tiny, (step * (1 + 2**-11)).half().float(), step)


def nearest(rows: Tensor, step: Tensor, most: int) -> Tensor:
    """The integers, as floats, that stand for what is nearest."""
    return (rows / step).round().clamp(-most, most)


def learned(rows: Tensor, step: Tensor, most: int, moments: Tensor) -> Tensor:
    """The integers next below or above that change the outputs of the layer least, for inputs of these moments.

    A row's squared error is d M d, where d is what rounding adds to it and M the second moments of what it meets
    (Nagel et al., Up or down? Adaptive rounding, 2020, eq. 13). The paper relaxes each choice to a number that it
    trains. Here the weight whose turning helps most is turned, in all rows at once, until none helps: the error never
    ends above that of rounding to the nearest.

    Args:
        rows: (out, fan in), the rows of a group next to each other.
        step: (out, 1), or () for all.
        moments: (groups, fan in, fan in), the mean of x x' over what the rows of a group meet.
    """
    exact = (rows / step).clamp(-most, most)
    found = exact.round()
    below, above = exact.floor(), exact.ceil()
    group = torch.arange(len(rows)) * len(moments) // len(rows)
    each = torch.arange(len(rows))
    squares = moments.diagonal(dim1=1, dim2=2)[group]
    off = found - exact
    slopes = torch.einsum("gof,gfe->goe", off.unflatten(0, (len(moments), -1)), moments).flatten(0, 1)
    small = (_LEAST * (slopes * off).sum(1)).clamp(min=0)  # which rounding might put below
    while True:
        turns = below + above - 2 * found  # to the other side
        gains = 2 * turns * slopes + turns.square() * squares
        gain, place = gains.min(1)
        turn = torch.where(gain < -small, turns[each, place], 0.0)
        if not turn.any():
            return found
        found[each, place] += turn
        slopes += turn[:, None] * moments[group, place]


def drift(layer: Layer, mean: Tensor, added: Tensor) -> Tensor:
    """(out,) what a change of the weight adds to the mean of each output (Nagel et al., Data-free, 2019, eq. 17).

    Layers are linear, so it is what the change makes of the mean input; where that is zero at the rim, padding counts.

    Args:
        mean: over images, of the shape of one input.
        added: to the weight.
    """
    out = layer(mean[None], added)
    return out.mean((0, 2, 3)) if layer.kind == "Conv" else out.flatten(0, -2).mean(0)


def _moments(net: Net, images: Tensor, scheme: Scheme) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By layer, the mean input over images, and the second moments of what a row meets: only what will be read."""
    means: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    moments: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    if scheme.rounding == "nearest" and not scheme.correct_bias:
        return means, moments
    for arrays in net.flow(list(dict.fromkeys(layer.x for layer in net.layers)), images):
        for layer in net.layers:
            x = arrays[layer.x]
            if scheme.correct_bias:
                means[layer.name] = means[layer.name] + x.sum(0) / len(images)
            if scheme.rounding == "learned":
                columns = layer.columns(x, _tensor(net, layer))
                some = columns[:, :: max(1, columns.shape[1] // (len(x) * _POSITIONS)) | 1]
                moments[layer.name] = moments[layer.name] + some.mT @ some / some.shape[1] * len(x) / len(images)
    return means, moments


def _tensor(net: Net, layer: Layer) -> Tensor:
    return torch.from_numpy(net[layer.weight].copy())
