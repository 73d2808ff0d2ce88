"""BatchNorm folding: a frozen normalisation is an affine map, so the layer before it can absorb it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

TOLERANCE = 1e-4  # of the largest absolute output


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    input: Tensor
    output: Tensor


def folded(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of `model`, in evaluation mode, with each BatchNorm folded into the layer whose output it alone reads.

    The data flow is that of one pass over `x`, a batch that the model takes. What follows a norm within its module
    (timm's BatchNormAct2d holds an activation) stays. Where the folded model's answers to `x` differ by more than
    `TOLERANCE`, or nothing folds, `model` itself is returned.
    """
    copied = copy.deepcopy(model).eval()
    swaps: dict[nn.Module, nn.Module] = {}
    for layer, norm in _pairs(copied, x):
        fused = _fuse(layer, norm)
        if fused is not None:
            swaps |= {layer.module: fused, norm.module: _after(norm.module)}
    for path, module in list(copied.named_modules()):
        if module in swaps:
            _swap(copied, path, swaps[module])
    return copied if swaps and _agree(copied, model, x) else model


@torch.no_grad()
def _agree(copied: nn.Module, model: nn.Module, x: Tensor) -> bool:
    try:
        return _close(copied(x), model(x))
    except AttributeError:  # a model that reads its norms' weights by itself
        return False


def _close(value: Tensor, reference: Tensor) -> bool:
    return bool((value - reference).abs().max() <= TOLERANCE * reference.abs().max())


def _pairs(model: nn.Module, x: Tensor) -> Iterator[tuple[_Call, _Call]]:
    """Layers and the norms that are the one and only reader of their output."""
    calls: list[_Call] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.append(_Call(module, inputs[0], output))

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, _BatchNorm)
    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, kinds)]
    with torch.enable_grad():  # autograd's graph tells who reads what, functions included
        logits = model(x.detach().clone().requires_grad_() + 0)
    for hook in hooks:
        hook.remove()

    times = Counter(call.module for call in calls)
    readers = _readers(logits)
    layers = {id(call.output): call for call in calls if not isinstance(call.module, _BatchNorm)}
    for norm in calls:
        layer = layers.get(id(norm.input)) if isinstance(norm.module, _BatchNorm) else None
        if layer is not None and times[layer.module] == times[norm.module] == 1 == readers[layer.output.grad_fn]:
            yield layer, norm


def _readers(output: Tensor) -> Counter[Any]:
    """How many operations read the result of each node of the graph that made `output`."""
    readers: Counter[Any] = Counter()
    todo, seen = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        before = [source for source, _ in node.next_functions]
        readers.update(before)
        todo += before
    return readers


@torch.no_grad()
def _fuse(layer: _Call, norm: _Call) -> nn.Module | None:
    """The layer that does the work of both; None where it does not (a layer that standardises its weights)."""
    module, bn = cast(Any, layer.module), cast(_BatchNorm, norm.module)
    if bn.running_mean is None:
        return None
    fused = (fuse_linear_bn_eval if isinstance(module, nn.Linear) else fuse_conv_bn_eval)(module, bn)
    x = layer.input.detach()
    whole, parts = _after(bn)(fused(x.clone())), bn(module(x.clone()))
    return fused if _close(whole, parts) else None


def _after(norm: Any) -> nn.Module:
    """What is left of a norm's module without the norm."""
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def _swap(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
