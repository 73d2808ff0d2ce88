"""Small images: nets made for 224 pixels reduce 32 times, and would see one pixel of a small image.

Up to 64 pixels the first reductions of a net are eased, one halving after the other, until its last map has the side
that its family asks for or nothing is left to ease. What is done is a function of the net and the image size alone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from kd.evaluate import inference

SMALL = 64
_LARGE = 256  # on which reductions are read off: every power of 2 up to it shows
_REDUCING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def patches(patch_size: int, image_size: int) -> int:
    """The patch of a vision transformer that cuts a small image into about 8 x 8, and at least 4 x 4."""
    if image_size > SMALL:
        return patch_size
    fitting = [p for p in range(1, patch_size + 1) if image_size % p == 0 and image_size // p >= 4]
    return min(fitting, key=lambda p: (abs(image_size // p - 8), -p), default=patch_size)


def ease(net: Any, channels: int, image_size: int, last: int) -> None:
    """Take reductions out of the stem, in place, until the last map of such an image has `last` pixels a side.

    `net` follows timm's protocol; its feature_info tells the new reductions. Convolutions and pools that see the
    largest image are eased together, so that branches still fit. Pools are removed, and an even kernel loses a row and
    a column, because it could not keep the size.
    """
    if image_size > SMALL:
        return
    sides, groups = _look(net, channels)
    reductions = [_LARGE // side for side in sides]
    for seen, names in groups:
        if reductions[-1] * last <= image_size:
            break
        for name in names:
            _halve(net, name)
        reductions = [r // 2 if side < seen else r for r, side in zip(reductions, sides, strict=True)]
    for info, reduction in zip(net.feature_info, reductions, strict=True):
        info["reduction"] = reduction


def _look(net: Any, channels: int) -> tuple[list[int], list[tuple[int, list[str]]]]:
    """The side of every map of a large image, and the halvings that can be undone, first to last.

    A halving is the side of the map that goes in, and the names of all modules that halve it.
    """
    sketch = copy.deepcopy(net).to("meta")  # nothing is computed
    names: dict[int, list[str]] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: names.setdefault(inputs[0].shape[-1], []).append(name)

    for name, module in sketch.named_modules():
        if _stride(module) > 1:
            module.register_forward_hook(note(name))
    with inference(sketch):
        _, maps = sketch.forward_intermediates(torch.zeros(1, channels, _LARGE, _LARGE, device="meta"))
    sides = [each.shape[-1] for each in maps]
    groups = []
    for side in sorted(names, reverse=True):
        halvings = _stride(net.get_submodule(names[side][0])).bit_length() - 1
        groups += [(side, names[side])] * halvings
    return sides, groups


def _stride(module: nn.Module) -> int:
    if not isinstance(module, _REDUCING):
        return 1
    return module.stride if isinstance(module.stride, int) else module.stride[0]


def _halve(net: nn.Module, name: str) -> None:
    module: Any = net.get_submodule(name)
    stride = _stride(module) // 2
    if not isinstance(module, nn.Conv2d):
        net.set_submodule(name, nn.Identity())
        return
    module.stride = (stride, stride)
    kernel = module.kernel_size[0]
    if kernel % 2 == 0:
        kernel -= 1
        module.weight = nn.Parameter(module.weight.detach()[..., :kernel, :kernel].contiguous())
        module.kernel_size, module.padding = (kernel, kernel), (kernel // 2, kernel // 2)
