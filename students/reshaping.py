"""Width and depth of nets whose constructors take no numbers: the built net, layer by layer, in a pass over an image.

Sums and rows of maps need no description: what a layer takes in is what it is given when the net runs.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import InputError
from kd.evaluate import inference
from students.scaling import Factors, scaled

WIDTHS: dict[str, int | Fraction] = {
    "HighResolutionNet": 8,
    "InceptionResnetV2": Fraction(1, 32),
    "InceptionV3": 8,
    "InceptionV4": 8,
    "NextViT": Fraction(1, 16),
    "PNASNet5Large": Fraction(1, 27),
    "SENet": 8,
    "SelecSls": 8,
    "Xception": 8,
}
"""By the name of the class: what the channels are multiples of; a fraction is what the factor is a multiple of.

For it channels are its multiples: where they are added to what was put together of parts.
"""
DEPTHS = {"InceptionResnetV2", "InceptionV3", "InceptionV4", "NASNetALarge", "PNASNet5Large", "SelecSls", "Xception"}
SIDE = 160  # of an image that all of these can take


def reshape(net: Any, channels: int, width: Factors, depth: Factors) -> None:
    """What `WIDTHS` and `DEPTHS` say of the class of `net`, in place; there a factor is one number."""
    kind, x = type(net).__name__, torch.zeros(1, channels, SIDE, SIDE)
    if kind in DEPTHS and depth != 1 and not isinstance(depth, tuple):
        shorten(net, x, depth)
    if kind in WIDTHS and width != 1 and not isinstance(width, tuple):
        narrow(net, x, width, WIDTHS[kind], net.get_classifier())
        _retell(net, x)


class Skip(nn.Module):
    """In the place of a block: hands on one of the maps that it was given."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, *maps: Tensor) -> Tensor:
        return maps[self.place]


def narrow(net: nn.Module, x: Tensor, width: float, multiple: int | Fraction, classifier: nn.Module) -> None:
    """Give the layers of `net` but its classifier scaled channels, in place, and let all take in what they are given.

    New weights are drawn with the spread of the old ones, corrected for the number of inputs.
    """

    def scale(count: int) -> int:
        if isinstance(multiple, int):
            return scaled(count, width, multiple)
        return max(1, round(count * multiple * max(1, round(width / multiple))))

    def fit(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].shape[1]
        if isinstance(layer, nn.Conv2d):
            depthwise = layer.groups == layer.in_channels
            out = channels * (layer.out_channels // layer.in_channels) if depthwise else scale(layer.out_channels)
            out = layer.out_channels if layer is classifier else out
            layer.groups = channels if depthwise else math.gcd(layer.groups, channels, out)
            layer.in_channels, layer.out_channels = channels, out
            _draw(layer, (out, channels // layer.groups, *layer.kernel_size))
        elif isinstance(layer, nn.Linear):
            channels = inputs[0].shape[-1]
            layer.in_features = channels
            layer.out_features = layer.out_features if layer is classifier else scale(layer.out_features)
            _draw(layer, (layer.out_features, channels))
        elif hasattr(layer, "head_dim"):
            layer.head_dim = inputs[0].shape[-1] // layer.num_heads
            layer.scale = layer.head_dim**-0.5
        else:
            layer.num_features = channels
            for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
                if value.dim():
                    _set(layer, name, value[:1].repeat(channels))

    kinds = nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d
    layers = [m for m in net.modules() if isinstance(m, kinds) or hasattr(m, "head_dim")]
    handles = [layer.register_forward_pre_hook(fit) for layer in layers]
    with inference(net):
        net(x)
    for handle in handles:
        handle.remove()


def _retell(net: Any, x: Tensor) -> None:
    """Let a net of timm tell its new channels."""
    with inference(net):
        _, maps = net.forward_intermediates(x)
    for info, each in zip(net.feature_info, maps, strict=True):
        info["num_chs"] = each.shape[1]
    net.num_features = net.head_hidden_size = net.get_classifier().weight.shape[1]


def _draw(layer: nn.Module, shape: tuple[int, ...]) -> None:
    old: Any = layer.weight
    spread = old.std() * math.sqrt(old[0].numel() / math.prod(shape[1:]))
    _set(layer, "weight", torch.randn(shape, dtype=old.dtype, device=old.device) * spread)
    if isinstance(layer.bias, Tensor):
        _set(layer, "bias", layer.bias[:1].repeat(shape[0]))


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(layer, name)
    setattr(layer, name, nn.Parameter(value.detach(), old.requires_grad) if isinstance(old, nn.Parameter) else value)


def shorten(net: nn.Module, x: Tensor, depth: float) -> None:
    """Take blocks out of `net`, in place: of those in a row that are of one kind and one shape, the last ones.

    Raises InputError where blocks would have to be added.
    """
    seen: dict[str, tuple[Any, ...]] = {}

    def note(name: str) -> Any:
        def hook(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (block, inputs, output)

        return hook

    parts = ((f"{name}.", child) for name, child in net.named_children() if isinstance(child, nn.Sequential))
    stages = [("", net), *parts]
    blocks = [(f"{prefix}{name}", block) for prefix, stage in stages for name, block in stage.named_children()]
    handles = [block.register_forward_hook(note(name)) for name, block in blocks if [*block.children()]]
    with inference(net):
        net(x)
    for handle in handles:
        handle.remove()

    def kind(name: str) -> Any:
        block, inputs, output = seen[name]
        same = all(_shape(each) == _shape(output) for each in inputs)
        return name.rpartition(".")[0], type(block), _shape(output) if same else name

    rows = [[*row] for _, row in groupby(seen, kind)]
    if depth > 1:
        raise InputError("student.depth", depth, f"blocks of {type(net).__name__} can be taken out, not added")
    for row in rows:
        for before, name in pairwise(row[scaled(len(row), depth) - 1 :]):
            place = next(i for i, each in enumerate(seen[name][1]) if each is seen[before][2])
            net.set_submodule(name, Skip(place))


def _shape(maps: Any) -> Any:
    return tuple(map(_shape, maps)) if isinstance(maps, list | tuple) else maps.shape
