"""The form that a net is deployed in: parallel branches and norms become the one convolution that they add up to.

MobileOne, RepVGG, RepViT, FastViT, RepGhost and others of timm train several branches in the place of a layer. Ding et
al., RepVGG: Making VGG-style ConvNets Great Again, 2021; Vasu et al., MobileOne, 2023.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import students
from students.edits import Replace

_METHODS = ("fuse", "reparameterize", "switch_to_deploy")  # timm's blocks have one; the first gives the new block


def reparameterized(model: nn.Module, x: Tensor, tolerance: float) -> tuple[nn.Module, list[str]]:
    """A copy of `model`, which is in evaluation mode, in its deployed form; and the blocks that are left as trained.

    A block is left where an edit stands in the way, as a factorised convolution does. All are, and the model itself is
    returned, where answers to images `x` would differ by more than `tolerance` of their scale.
    """
    made = copy.deepcopy(model)
    with torch.no_grad():
        left = list(_convert(made, ""))
        return (made, left) if _agree(made, model, x, tolerance) else (model, list(_able(model)))


def plain(model: students.Classifier) -> tuple[students.Classifier, list[str]]:
    """With plain convolutions in the place of weight-standardised ones a copy, which answers alike; and their paths.

    A standardised weight depends on all of its inputs, none of which could be taken out of it.
    """
    from timm.layers import ScaledStdConv2d, StdConv2d  # late: it takes a while

    edits, weights = [], {}
    for path, module in model.net.named_modules():
        if not isinstance(module, (StdConv2d, ScaledStdConv2d)):
            continue
        taken: list[Tensor] = []
        with _Weights(taken), torch.no_grad():
            module(torch.zeros(1, module.in_channels, *module.kernel_size, device=module.weight.device))
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        settings = {name: getattr(module, name) for name in names} | {"bias": module.bias is not None}
        edits.append(Replace(path, [{"type": "Conv2d", **settings}]))
        weights[f"{path}.0.weight"] = taken[0]
        if module.bias is not None:
            weights[f"{path}.0.bias"] = module.bias.detach()
    if not edits:
        return model, []
    made = copy.deepcopy(model)
    students.edit(made, edits, weights)
    return made, [edit.module for edit in edits]


class _Weights(TorchDispatchMode):
    """Notes what convolutions work with."""

    def __init__(self, taken: list[Tensor]) -> None:
        super().__init__()
        self.taken = taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "convolution":
            self.taken.append(args[1])
        return func(*args, **(kwargs or {}))


def _convert(parent: nn.Module, prefix: str) -> Iterator[str]:
    """Convert what is below a module, in place, from the outside; the paths of the innermost that could not be."""
    for name, child in list(parent.named_children()):
        path, failed = f"{prefix}{name}", False
        try:
            child = _converted(child)
        except Exception:  # whatever a block raises whose layers are not those that it was built with
            failed = True
        setattr(parent, name, child)
        below = list(_convert(child, f"{path}."))
        yield from below or [path] * failed


def _converted(block: nn.Module) -> nn.Module:
    method = next((name for name in _METHODS if hasattr(block, name)), None)
    if method is None:
        return block
    block = copy.deepcopy(block)  # which a failure leaves half done
    for inner in block.modules():  # which it converts too
        if any(hasattr(inner, name) for name in _METHODS):
            _recount(inner)
    made = getattr(block, method)()
    return made if method == "fuse" else block


def _recount(block: Any) -> None:
    """Pruning and an eased stem change layers, not the numbers that their block keeps of them."""
    convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    numbers: dict[str, Any] = {}
    if not convs and norms and getattr(block, "groups", None) == getattr(block, "in_chs", None):
        numbers = dict.fromkeys(("groups", "in_chs", "out_chs"), norms[0].num_features)  # a norm as a depthwise layer
    elif convs:
        conv = max(convs, key=lambda conv: conv.kernel_size)  # the first of them, and not that of an attention
        numbers = {
            "groups": conv.groups,
            "stride": conv.stride,
            "in_chs": conv.in_channels,
            "out_chs": conv.out_channels,
            "dim": conv.out_channels,
        }
    vars(block).update({name: value for name, value in numbers.items() if name in vars(block)})


def _able(model: nn.Module) -> Iterator[str]:
    return (path for path, module in model.named_modules() if any(hasattr(module, name) for name in _METHODS))


def _agree(made: nn.Module, model: nn.Module, x: Tensor, tolerance: float) -> bool:
    try:
        error, scale = (made(x) - model(x)).abs().max(), model(x).abs().max()
    except Exception:  # a block that took the wrong shape
        return False
    return bool(error <= tolerance * scale)
