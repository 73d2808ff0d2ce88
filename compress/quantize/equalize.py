"""Cross-layer equalisation: channels between two layers get ranges alike, and the net answers as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress.quantize.net import Layer, Net

if TYPE_CHECKING:
    from onnx import NodeProto

_PASSING = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")
"""They answer a channel that is multiplied by a positive factor with the same answer multiplied by it."""
_ROUNDS = 20  # over all pairs, since a layer may stand in two
_CLOSE = 1e-3  # to 1, of the factors of a round that is the last


@dataclass
class Pair:
    """Two layers with nothing between them but what passes factors on, and maybe a clip from zero to a limit.

    Attributes:
        peaks: (channels,) the largest value on its way into the clip, in parts of the limit; zero without a clip.
    """

    first: Layer
    second: Layer
    clip: NodeProto | None
    peaks: Tensor


def equalize(net: Net, images: Tensor) -> int:
    """Rescale, in place, the channels between all pairs of layers; returns how many pairs there are.

    What one layer makes is divided, channel by channel, by what the next one's weights are multiplied by, such that
    the largest weights of both are alike (Nagel et al., Data-free quantization through weight equalization and bias
    correction, 2019, eq. 11). A clipped ReLU passes a factor on below its limit only: channels that reach it on these
    images are left alone, and no other is scaled up beyond it.
    """
    found = [pair for layer in net.layers if (pair := _pair(net, layer))]
    _look(net, [pair for pair in found if pair.clip is not None], images)
    for _ in range(_ROUNDS):
        far = [_step(net, pair) for pair in found]
        if max(far, default=0.0) < _CLOSE:
            break
    return len(found)


def _step(net: Net, pair: Pair) -> float:
    """Make the ranges of one pair alike; returns how far the factors are from 1."""
    first, second = (torch.from_numpy(net[layer.weight].copy()) for layer in (pair.first, pair.second))
    rows, inputs = pair.first.rows(first), pair.second.inputs(second)
    made, read = rows.abs().amax(1), inputs.abs().amax((2, 3)).flatten()
    able = (made > 0) & (read > 0) & (pair.peaks < 1)
    factors = torch.where(able, (made / read).sqrt(), 1.0)
    factors = torch.where(able, factors.maximum(pair.peaks), 1.0)
    rows /= factors[:, None]
    inputs *= factors.view(*inputs.shape[:2], 1, 1)
    pair.peaks /= factors
    net[pair.first.weight], net[pair.second.weight] = first.numpy(), second.numpy()
    if pair.first.bias is not None:
        net[pair.first.bias] = net[pair.first.bias] / factors.numpy()
    return float((factors - 1).abs().max())


def _pair(net: Net, first: Layer) -> Pair | None:
    """The layer and the one that reads it, if there is such a one."""
    if first.kind == "MatMul" or (first.bias is None and len(first.node.input) > 2):
        return None  # its bias is elsewhere, or others read it
    node, clip = net.reader(first.node.output[0]), None
    while node is not None and (node.op_type in _PASSING or (clip is None and _limited(net, node))):
        clip = node if node.op_type == "Clip" else clip
        node = net.reader(node.output[0])
    second = next((layer for layer in net.layers if node is not None and layer.name == node.name), None)
    if second is None or second.kind != first.kind:
        return None
    return Pair(first, second, clip, torch.zeros(len(first.rows(net[first.weight]))))


def _limited(net: Net, node: NodeProto) -> bool:
    """Whether it clips from zero to a stored limit."""
    if node.op_type != "Clip" or len(node.input) != 3 or not all(net.stores(name) for name in node.input[1:]):
        return False
    return float(net[node.input[1]]) == 0 < float(net[node.input[2]])


def _look(net: Net, clipped: list[Pair], images: Tensor) -> None:
    """Fill in the peaks."""
    clips = {pair.clip.input[0]: pair for pair in clipped if pair.clip is not None}
    for arrays in net.flow(list(clips), images) if clips else ():
        for name, array in arrays.items():
            pair = clips[name]
            assert pair.clip is not None
            peaks = array.movedim(1, 0).flatten(1).amax(1) / float(net[pair.clip.input[2]])
            pair.peaks = pair.peaks.maximum(peaks)
