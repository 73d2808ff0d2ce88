"""Small images: nets made for 224 pixels reduce 32 times, and would see one pixel of a small image.

Up to 64 pixels patches are cut smaller, and the first reductions of a net are eased, one halving after the other, until
its last map has the side that its family asks for or nothing is left to ease. What is done is a function of the net and
the image size alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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


def patched(arguments: dict[str, Any], image_size: int) -> dict[str, Any]:
    """The arguments of a constructor that change for its patches to fit. Those of 4 pixels begin a pyramid and stay."""
    size = arguments.get("patch_size") or getattr(arguments.get("cfg"), "patch_size", None)  # which NaFlexViT has
    sizes = arguments.get("patch_sizes")
    if isinstance(size, int) and size > 4:
        stride = arguments.get("stride")  # where patches overlap
        fitting = patches(stride or size, image_size)
        return {"patch_size": fitting} | ({"stride": fitting} if stride else {})
    return {"patch_sizes": (patches(sizes[0], image_size), *sizes[1:])} if sizes else {}


def ease(
    build: Callable[[int], Any], sketch: Any, channels: int, image_size: int, last: int, bound: int | None
) -> nn.Module:
    """The net that `build` makes, reductions taken out of its stem until its last map has `last` pixels a side.

    Convolutions and pools that see the largest image are eased together, so that branches still fit. Pools are removed,
    and an even kernel loses a row and a column, because it could not keep the size. A net that is bound to its image
    size is built for one as much larger as its stem is eased: tables of positions and windows then fit.

    Args:
        build: makes a net of timm's protocol for an image size; its feature_info tells the new reductions.
        sketch: such a net on device "meta".
        bound: the image size of `sketch`, if that is bound to one.
    """
    if not hasattr(sketch, "forward_intermediates") or sketch.feature_info[-1]["reduction"] * last <= image_size:
        return build(image_size)
    large = bound or _LARGE
    sides, groups = _look(sketch, channels, large)
    reductions, eased, larger = [2 ** round(math.log2(large / side)) for side in sides], [], 1
    for seen, names in groups:
        if reductions[-1] * last <= image_size:
            break
        eased += names
        larger *= 2
        reductions = [r // 2 if side < seen else r for r, side in zip(reductions, sides, strict=True)]
    net = build(image_size * larger if bound else image_size)
    _keep_borders(net)
    for name in eased:
        _halve(net, name)
    for info, reduction in zip(net.feature_info, reductions, strict=True):
        info["reduction"] = reduction
    for module in net.modules():
        if hasattr(module, "feature_ratio"):  # of a transformer behind convolutions: measured anew
            module.set_input_size((image_size, image_size))
        elif hasattr(module, "strict_img_size"):
            module.strict_img_size = False
    return net


def _look(sketch: Any, channels: int, size: int) -> tuple[list[int], list[tuple[int, list[str]]]]:
    """The side of every map of a large image, and the halvings that can be undone, first to last.

    A halving is the side of the map that goes in, and the names of all modules that halve it.
    """
    names: dict[int, list[str]] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: names.setdefault(inputs[0].shape[-1], []).append(name)

    _keep_borders(sketch)
    for name, module in sketch.named_modules():
        if _stride(module) > 1:
            module.register_forward_hook(note(name))
    with inference(sketch):
        _, maps = sketch.forward_intermediates(torch.zeros(1, channels, size, size, device="meta"))
    groups = []
    for side in sorted(names, reverse=True):
        stride = math.gcd(*(_stride(sketch.get_submodule(name)) for name in names[side]))
        halvings = (stride & -stride).bit_length() - 1  # of an odd stride none
        groups += [(side, names[side])] * halvings
    return [each.shape[-1] for each in maps], groups


def _stride(module: Any) -> int:
    if not isinstance(module, _REDUCING) and type(module).__name__ != "BlurPool2d":
        return 1
    return module.stride if isinstance(module.stride, int) else module.stride[0]


def _keep_borders(net: Any) -> None:
    """Pad the 3 x 3 kernels that lose the border of a map, in place: its side is then a power of 2 again."""
    for module in net.modules():
        if type(module) in _REDUCING and not getattr(module, "ceil_mode", False):
            if (module.kernel_size, module.padding) == ((3, 3), (0, 0)):
                module.padding = (1, 1)
            elif (module.kernel_size, module.padding) == (3, 0):
                module.padding = 1


def _halve(net: nn.Module, name: str) -> None:
    module: Any = net.get_submodule(name)
    if not isinstance(module, nn.Conv2d):
        net.set_submodule(name, nn.Identity())
        return
    before, stride = module.stride, (_stride(module) // 2,) * 2
    module.stride = stride
    holder: Any = net.get_submodule(name.rpartition(".")[0])
    if getattr(holder, "patch_size", None) == before:
        holder.patch_size = stride
    kernel = module.kernel_size[0]
    if kernel % 2 == 0:
        kernel -= 1
        module.weight = nn.Parameter(module.weight.detach()[..., :kernel, :kernel].contiguous())
        module.kernel_size = (kernel, kernel)
    if not type(module).__name__.endswith("Same"):  # which pad what they are given
        module.padding = (kernel // 2, kernel // 2)
