"""torchvision's classifiers, as `tv_<name>`, for any number of classes and channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from students.reshaping import SIDE, narrow, shorten
from students.scaling import not_scaled

PREFIX = "tv_"
WIDTHS = {"MNASNet": 8, "MobileNetV2": 8, "MobileNetV3": 8, "ShuffleNetV2": 4, "SqueezeNet": 8}
"""By the name of the class: what scaled channels are multiples of."""
DEPTHS = {"MobileNetV2", "MobileNetV3", "ShuffleNetV2"}
_TWO_OUTPUTS = ("googlenet", "inception_v3")  # auxiliary logits in training: no plain classifiers


def names() -> list[str]:
    from torchvision import models

    return [PREFIX + name for name in models.list_models(module=models) if name not in _TWO_OUTPUTS]


def preset(name: str) -> Any:
    """How the published weights want their images: `.crop_size`, `.mean`, `.std`."""
    from torchvision import models

    return models.get_model_weights(name.removeprefix(PREFIX)).DEFAULT.transforms()


def build(name: str, num_classes: int, in_chans: int, width: float, depth: float, pretrained: bool) -> nn.Module:
    """The net; with `pretrained`, torchvision's default weights, and a fresh classifier where the classes differ.

    Raises InputError where it cannot be scaled: other nets than the light ones of `WIDTHS` timm has too.
    """
    from torchvision import models

    name = name.removeprefix(PREFIX)
    if pretrained:
        weights = models.get_model_weights(name).DEFAULT
        net = models.get_model(name, weights=weights)
        _reclassify(net, len(weights.meta["categories"]), num_classes)
    else:
        net = models.get_model(name, weights=None, num_classes=num_classes)
    _adapt_input(net, in_chans)
    _scale(net, PREFIX + name, in_chans, width, depth)
    return net


def _scale(net: nn.Module, name: str, channels: int, width: float, depth: float) -> None:
    kind, x = type(net).__name__, torch.zeros(1, channels, SIDE, SIDE)
    if width != 1 and kind not in WIDTHS:
        raise not_scaled(name, width, 1, "its constructor takes no number of channels")
    if depth != 1 and kind not in DEPTHS:
        raise not_scaled(name, 1, depth, "no blocks of it can be left out")
    if depth != 1:
        shorten(net, x, depth)
    if width != 1:
        narrow(net, x, width, WIDTHS[kind], _last(net)[1])


def _reclassify(net: nn.Module, published: int, classes: int) -> None:
    if classes == published:
        return
    name, last = _last(net)
    if isinstance(last, nn.Linear):
        net.set_submodule(name, nn.Linear(last.in_features, classes))
    else:  # squeezenet
        net.set_submodule(name, nn.Conv2d(last.in_channels, classes, 1))


def _last(net: nn.Module) -> tuple[str, Any]:
    """The classifier, and its path."""
    return [(name, m) for name, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]


def _adapt_input(net: nn.Module, channels: int) -> None:
    """Make the first convolution take so many channels: its weights are summed for one, repeated for more."""
    from timm.models import adapt_input_conv

    if channels == 3:
        return
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    first.weight = nn.Parameter(adapt_input_conv(channels, first.weight.detach()))
    first.in_channels = channels
