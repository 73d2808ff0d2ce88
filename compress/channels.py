"""Channels that can only go together: which they are, and a net without them, by slicing and by silencing."""

from __future__ import annotations

import copy
import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from compress.importance import Weights
from kd.evaluate import inference
from students import Resize
from students.edits import shallow

TOLERANCE = 1e-4  # of the largest logit


@dataclass(frozen=True)
class Axis:
    """A side of a layer (or of a lone parameter) that channels lie along.

    Attributes:
        path: of the layer, or of the parameter.
        shrink: torch-pruning's function of (layer, indices) that takes entries out.
        dim: the dimension, as torch-pruning wants to be told.
        makes: whether the channels are written here, not just read.
    """

    path: str
    shrink: Callable[[Any, list[int]], Any]
    dim: int
    makes: bool


@dataclass(frozen=True, eq=False)
class Group:
    """Channels of several layers that are coupled, as by a residual sum.

    Attributes:
        name: the path of the first layer that makes them.
        channels: how many they are.
        axes: for each axis, which of its entries belong to channel 0, 1, ...; none where the trace does not tell.
    """

    name: str
    channels: int
    axes: Mapping[Axis, Sequence[Sequence[int]]]

    def weights(self, net: nn.Module) -> Weights:
        """What the importances judge by."""
        matrices: list[Tensor] = []
        scales: list[Tensor] = []
        for axis, entries in self.axes.items():
            layer, flat = _resolve(net, axis.path), list(chain(*entries))
            weight = getattr(layer, "weight", None)
            if weight is None or len(flat) % self.channels or isinstance(layer, nn.PReLU):
                continue
            rows = weight if axis.makes else weight.transpose(0, 1)
            if max(flat) >= len(rows):  # the inputs of a grouped convolution
                continue
            rows = rows.detach()[flat].reshape(self.channels, -1)
            (matrices if weight.dim() > 1 else scales).append(rows if weight.dim() > 1 else rows.abs().sum(1))
        return Weights(matrices, scales)


Removal = Mapping[Group, Sequence[int]]
"""For some groups, the channels that go."""


def find(net: nn.Module, x: Tensor) -> list[Group]:
    """The groups of `net`, traced on the input `x`, by torch-pruning (Fang et al. 2023); the logits are in none.

    They are what the trace suggests: `sound` tells which of them are right.
    """
    from torch_pruning import DependencyGraph, ops

    class Graph(DependencyGraph):
        def _trace(self, *args: Any, **options: Any) -> Any:
            nodes = super()._trace(*args, **options)
            for node in nodes.values():
                # torch-pruning takes every reshape for a flattening, and cannot follow the shuffles of a ShuffleNet
                if node.type == ops.OPTYPE.RESHAPE and len(node.grad_fn._input_metadata[0].shape) != 2:
                    node.type = ops.OPTYPE.ELEMENTWISE
            return nodes

    traced = copy.deepcopy(net).eval().requires_grad_(True)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the product makes an end of the graph of its own, so that groups which reach it can be told
        graph = Graph().build_dependency(traced, x, output_transform=lambda y: y * 1, verbose=False)
    paths = {module: path for path, module in traced.named_modules()}
    paths |= {parameter: path for path, parameter in traced.named_parameters()}
    paths |= {module: _LOGITS for module, node in graph.module2node.items() if node.type == ops.OPTYPE.OUTPUT}
    groups: list[Group] = []
    seen: set[str] = set()
    for layer, root in list(paths.items()):
        if not isinstance(layer, _PRODUCERS) or layer not in graph.module2node or root in seen:
            continue
        try:
            axes = _axes(graph, layer, paths)
        except (IndexError, TypeError, ZeroDivisionError):  # torch-pruning lost count of channels behind a split
            axes = {}
        seen.update(axis.path for axis in axes if axis.makes)
        if not any(axis.path == _LOGITS for axis in axes):
            groups.append(Group(root, max(map(len, axes.values()), default=0), axes))
    return groups


def sliced(net: nn.Module, removal: Removal) -> nn.Module:
    """A copy without the channels; what stays as it is, it shares with `net`."""
    made = shallow(net)
    for axis, entries in _entries(removal).items():
        axis.shrink.__self__.pruning_dim = axis.dim  # type: ignore[attr-defined]
        layer = _resolve(made, axis.path)
        smaller = axis.shrink(layer, entries)
        if isinstance(layer, nn.Parameter):
            _put(made, axis.path, smaller)
    return made


def silenced(net: nn.Module, removal: Removal) -> nn.Module:
    """A copy of the same shapes, in which the layers and norms that make the channels give zero for them."""
    made = shallow(net)
    for axis, entries in _entries(removal).items():
        layer = _resolve(made, axis.path)
        if isinstance(layer, nn.Parameter):
            _put(made, axis.path, _zeroed(layer, axis.dim, entries))
        elif axis.makes and not isinstance(layer, nn.PReLU):  # its slopes keep zero zero
            for name, value in list(layer.named_parameters(recurse=False)):
                turned = isinstance(layer, nn.modules.conv._ConvTransposeNd) and name == "weight"
                setattr(layer, name, _zeroed(value, 1 if turned else 0, entries))
    return made


def sound(net: nn.Module, x: Tensor, removal: Removal) -> list[Group]:
    """The groups of `removal` that can go together: with these, the sliced net answers as the silenced one."""

    def extend(good: list[Group], more: list[Group]) -> list[Group]:
        if not more or _agree(net, x, {group: removal[group] for group in (*good, *more)}):
            return good + more
        if len(more) == 1:
            return good
        half = len(more) // 2
        return extend(extend(good, more[:half]), more[half:])

    return extend([], list(removal))


def separable(net: nn.Module, x: Tensor, groups: Sequence[Group]) -> list[Group]:
    """The groups of which half of the channels, drawn at random, can go."""
    draw = random.Random(0)
    known = [group for group in groups if group.axes and group.channels > 1]
    halves = {group: draw.sample(range(group.channels), group.channels // 2) for group in known}
    return sound(_lively(net, x), x, halves)


def changes(before: nn.Module, after: nn.Module) -> list[Resize]:
    """The edits that give `before` the shapes of `after`."""
    edits = []
    for path, new in after.named_modules():
        old = before.get_submodule(path)
        attributes = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(new).items()
            if name in vars(old) and _is_plain(value) and value != getattr(old, name)
        }
        own = {**dict(new.named_parameters(recurse=False)), **dict(new.named_buffers(recurse=False))}
        shapes = {name: list(value.shape) for name, value in own.items() if value.shape != getattr(old, name).shape}
        if attributes or shapes:
            edits.append(Resize(path, attributes, shapes))
    return edits


_PRODUCERS = (nn.modules.conv._ConvNd, nn.Linear)
_LOGITS = "(logits)"  # no module has such a path


def _axes(graph: Any, layer: nn.Module, paths: Mapping[Any, str]) -> dict[Axis, list[list[int]]]:
    """Where the outputs of `layer` lie, each channel with all that goes with it."""
    pruner = graph.get_pruner_of_module(layer)
    channels = pruner.get_out_channels(layer)
    axes: dict[Axis, list[list[int]]] = {}
    for item in graph.get_pruning_group(layer, pruner.prune_out_channels, range(channels)):
        target, shrink = item.dep.target, item.dep.handler
        if target.module not in paths:  # an operation without weights
            continue
        entries: list[list[int]] = [[] for _ in range(channels)]
        for index, channel in zip(item.idxs, item.root_idxs, strict=True):
            entries[channel].append(index)
        makes = graph.is_out_channel_pruning_fn(shrink)
        axes[Axis(paths[target.module], shrink, target.pruning_dim, makes)] = entries
    return axes


def _lively(net: nn.Module, x: Tensor) -> nn.Module:
    """A copy in which no branch is mute: timm begins residual branches with scales of zero, which hide any mistake."""
    made = copy.deepcopy(net).train().requires_grad_(False)
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
        for module in made.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0  # the statistics of this batch alone
        made(x)
    return made.eval()


def _agree(net: nn.Module, x: Tensor, removal: Removal) -> bool:
    try:
        small, full = sliced(net, removal), silenced(net, removal)
        with inference(small), inference(full):
            found, expected = small(x), full(x)
    except Exception:  # whatever a net or a wrong index raises: this cannot be sliced
        return False
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _entries(removal: Removal) -> dict[Axis, list[int]]:
    """What goes along each axis; groups that meet on one, behind a concatenation, are taken out at once."""
    gone: dict[Axis, set[int]] = defaultdict(set)
    for group, channels in removal.items():
        for axis, entries in group.axes.items():
            gone[axis].update(index for channel in channels for index in entries[channel])
    return {axis: sorted(indices) for axis, indices in gone.items() if indices}


def _resolve(net: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(net.get_submodule(parent), name)


def _put(net: nn.Module, path: str, value: nn.Parameter) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, value)


def _zeroed(value: Tensor, dim: int, entries: Sequence[int]) -> nn.Parameter:
    index = torch.tensor(entries, device=value.device)
    return nn.Parameter(value.detach().index_fill(dim, index, 0), requires_grad=value.requires_grad)


def _is_plain(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, (tuple, list)) and all(isinstance(n, int) for n in value))
