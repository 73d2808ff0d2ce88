"""Channels that can only go together: which they are, and a net without them, by slicing and by silencing."""

from __future__ import annotations

import copy
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.labels import FIXED, Axis, Trace, is_rms, trace
from kd.evaluate import inference
from students import Resize
from students.edits import shallow

TOLERANCE = 1e-4  # of the largest logit
_ROUNDING = 1e-2  # of the largest logit: beyond it single precision is not to blame
_SPATIAL = ("block_size", "grid", "halo", "image", "img", "kernel", "patch", "pool", "stride", "win")  # no channels
Classes = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Group:
    """Channels of several layers that are coupled, as by a residual sum.

    Attributes:
        name: the path of the first layer that has them.
        axes: for each axis, (channels, n) which of its entries belong to each channel.
        classes: (channels,) the number of each channel in the net.
    """

    name: str
    axes: Mapping[Axis, Classes]
    classes: Classes

    @property
    def channels(self) -> int:
        return len(self.classes)

    @property
    def thickness(self) -> int:
        """Of how many channels of its layers one of these consists, as a head does."""
        return min((each.shape[1] for axis, each in self.axes.items() if axis.path.endswith(".weight")), default=1)

    @property
    def kind(self) -> object:
        """Equal for groups at the same place of several blocks."""
        return tuple((re.sub(r"\d+", "", axis.path), axis.dim) for axis in self.axes)

    def rows(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """(channels, n) of each parameter that `values` has one of its shape for: what belongs to the channels."""
        found = []
        for axis, entries in self.axes.items():
            if axis.path in values and axis.dim is not None:
                lying = values[axis.path].movedim(axis.dim, 0)
                found.append(lying[entries.ravel()].reshape(self.channels, -1))
        return found


Removal = Mapping[Group, Sequence[int]]
"""For some groups, the channels that go."""


@dataclass(frozen=True)
class Channels:
    """What `find` knows of a net.

    Attributes:
        groups: of channels that may go together, if slicing them is `sound`.
        params, macs: what is summed up to the cost: a factor, and for each length that multiplies it the classes along.
    """

    groups: list[Group]
    params: list[tuple[int, list[Classes]]]
    macs: list[tuple[int, list[Classes]]]

    def cost(self, by: str, removal: Removal) -> int:
        """Parameters or multiply-accumulates of an image without the channels, as far as the trace knows them."""
        gone = np.zeros(1 + max((int(group.classes.max()) for group in self.groups), default=0), dtype=bool)
        for group, channels in removal.items():
            gone[group.classes[list(channels)]] = True
        lengths: dict[int, int] = {}
        total = 0
        for factor, sides in getattr(self, by):
            for side in sides:
                if id(side) not in lengths:
                    lengths[id(side)] = len(side) - int(gone[side].sum())
                factor *= lengths[id(side)]
            total += factor
        return total


def find(net: nn.Module, x: Tensor) -> Channels:
    """The groups of `net`, traced on the input `x`; the logits are in none.

    They are what the trace suggests: `sound` tells which of them are right.
    """
    found = trace(shallow(net), x)
    classes = found.classes()
    for path, sizes in found.sizes.items():
        for axis, labels in _attributes(net.get_submodule(path), path, sizes, classes):
            found.tie(found.add(axis, len(labels)), labels)
    classes = found.classes()
    renumbered = np.zeros(int(classes.max()) + 1, dtype=np.int64)
    groups: list[Group] = []
    for axes, numbers, indices in _alike(found, classes):
        first = 1 + sum(group.channels for group in groups)
        renumbered[numbers] = np.arange(first, first + len(numbers))
        places: dict[Axis, list[int]] = defaultdict(list)
        for place, axis in enumerate(axes):
            places[axis].append(place)
        entries = {axis: indices[:, several] for axis, several in places.items()}
        name = axes[0].path.rpartition(".")[0] or axes[0].path
        before = sum(group.name.partition(" (")[0] == name for group in groups)  # as of queries, keys and values
        groups.append(Group(f"{name} ({before + 1})" if before else name, entries, renumbered[numbers]))
    classes = renumbered[classes]
    along = {axis: classes[start : start + found.lengths[axis]] for axis, start in found.axes.items()}
    params = []
    for path, parameter in net.named_parameters():
        sides = [along[Axis(path, dim)] for dim in range(parameter.dim()) if Axis(path, dim) in along]
        params.append((parameter.numel() // math.prod(map(len, sides)), sides))
    macs = [(factor, [classes[labels] for labels in sides]) for factor, sides in found.work]
    return Channels(groups, params, macs)


def _alike(found: Trace, classes: Classes) -> Iterator[tuple[tuple[Axis, ...], Classes, Classes]]:
    """The classes that can go and lie along the same axes, several of them: those axes, (n,) numbers of classes, and
    (n, axes) which entry of each axis belongs to each; in the order of the first entries."""
    names = list(found.axes)
    lengths = [found.lengths[axis] for axis in names]
    axis = np.repeat(np.arange(len(names)), lengths)
    index = np.concatenate([np.arange(length) for length in lengths])
    number = np.concatenate([classes[start : start + found.lengths[at]] for at, start in found.axes.items()])
    loose = number != classes[FIXED]
    axis, index, number = axis[loose], index[loose], number[loose]
    order = number.argsort(kind="stable")
    axis, index, number = axis[order], index[order], number[order]
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    ends = np.append(starts[1:], len(number))
    along: dict[bytes, list[int]] = defaultdict(list)
    for segment in np.argsort(order[starts], kind="stable").tolist():
        along[axis[starts[segment] : ends[segment]].tobytes()].append(segment)
    for segments in along.values():
        begin, count = starts[segments], ends[segments[0]] - starts[segments[0]]
        axes = tuple(names[place] for place in axis[begin[0] : begin[0] + count])
        if len({one.path for one in axes}) > 1:
            yield axes, number[begin], index[begin[:, None] + np.arange(count)]


def sliced(net: nn.Module, removal: Removal) -> nn.Module:
    """A copy without the channels; what stays as it is, it shares with `net`."""
    made = shallow(net)
    touched = set()
    for axis, gone in entries(removal).items():
        parent, name = _locate(made, axis.path)
        value = getattr(parent, name)
        touched.add(parent)
        if isinstance(value, Tensor):
            assert axis.dim is not None
            stay = torch.ones(value.shape[axis.dim], dtype=torch.bool)
            stay[gone] = False
            smaller = value.detach().index_select(axis.dim, stay.nonzero().flatten().to(value.device))
            trains = isinstance(value, nn.Parameter)
            setattr(parent, name, nn.Parameter(smaller, value.requires_grad) if trains else smaller)
        elif axis.dim is None:
            setattr(parent, name, value - len(gone))
        else:
            several = list(value)
            several[axis.dim] -= len(gone)
            setattr(parent, name, type(value)(several))
    for module in touched:
        _settle(module)
    return made


def silenced(net: nn.Module, removal: Removal) -> nn.Module:
    """A copy of the same shapes, in which all weights that belong to the channels are zero: those that make them and
    those that read them."""
    made = shallow(net)
    for axis, gone in entries(removal).items():
        parent, name = _locate(made, axis.path)
        value = getattr(parent, name)
        if isinstance(value, nn.Parameter):
            assert axis.dim is not None
            index = torch.from_numpy(gone).to(value.device)
            setattr(parent, name, nn.Parameter(value.detach().index_fill(axis.dim, index, 0), value.requires_grad))
    return made


def sound(net: nn.Module, x: Tensor, removal: Removal) -> list[Group]:
    """The groups of `removal` that can go together: with these, the sliced net answers as the silenced one.

    Where they cannot all go, groups of one kind, as of each block, are tried together; a kind is given up when neither
    its first group nor its last can go.
    """
    good: list[Group] = []

    def fits(more: list[Group]) -> bool:
        return _agree(net, x, {group: removal[group] for group in (*good, *more)})

    def add(more: list[Group]) -> None:
        if fits(more):
            good.extend(more)
        elif len(more) > 1:
            half = len(more) // 2
            add(more[:half])
            add(more[half:])

    if not removal or fits(list(removal)):
        return list(removal)
    kinds: dict[object, list[Group]] = defaultdict(list)
    for group in removal:
        kinds[group.kind].append(group)
    for kind in kinds.values():
        if len(kind) <= 2 or fits(kind[:1]) or fits(kind[-1:]):
            add(kind)
    return good


def separable(net: nn.Module, x: Tensor, groups: Sequence[Group]) -> list[Group]:
    """The groups of which any channels can go, as far as a part of each shows that is drawn at random."""
    draw = random.Random(0)
    parts: dict[Group, list[int]] = {}
    for place, group in enumerate(group for group in groups if group.channels > 1):
        # parts of unlike sizes: halves would hide that two groups are viewed by one number
        some = 1 + (place + group.channels // 2) % (group.channels - 1)
        parts[group] = draw.sample(range(group.channels), some)
    return sound(_lively(net, x), x, parts)


def changes(before: nn.Module, after: nn.Module) -> list[Resize]:
    """The edits that give `before` the shapes of `after`."""
    edits = []
    for path, new in after.named_modules():
        old = before.get_submodule(path)
        attributes = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(new).items()
            if name in vars(old) and (_is_plain(value) or isinstance(value, float)) and value != getattr(old, name)
        }
        own = {**dict(new.named_parameters(recurse=False)), **dict(new.named_buffers(recurse=False))}
        shapes = {name: list(value.shape) for name, value in own.items() if value.shape != getattr(old, name).shape}
        if attributes or shapes:
            edits.append(Resize(path, attributes, shapes))
    return edits


def _attributes(
    module: nn.Module, path: str, sizes: Sequence[Tensor], classes: Classes
) -> Iterator[tuple[Axis, Tensor]]:
    """The numbers that `module` keeps of the lengths it reshapes by, as far as they can be told by their values."""
    lengths: dict[int, dict[bytes, Tensor]] = defaultdict(dict)
    for labels in sizes:
        numbers = classes[labels]
        if (numbers != classes[FIXED]).any():
            lengths[len(labels)][numbers.tobytes()] = labels
    for name, value in vars(module).items():
        if name.startswith("_") or name.startswith(_SPATIAL) or not _is_plain(value):
            continue
        several = enumerate(value) if isinstance(value, (tuple, list)) else [(None, value)]
        for dim, number in several:
            if number > 1 and type(number) is int and number in lengths:
                for labels in lengths[number].values():  # whatever is viewed by one number stays equally long
                    yield Axis(f"{path}.{name}" if path else name, dim), labels


def _settle(module: nn.Module) -> None:
    """Let a layer's own numbers follow its weights."""
    match module:
        case nn.modules.conv._ConvNd():
            one, two = (1, 0) if module.transposed else (0, 1)
            module.out_channels = module.weight.shape[one] * (module.groups if module.transposed else 1)
            module.in_channels = module.weight.shape[two] * (1 if module.transposed else module.groups)
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.modules.batchnorm._BatchNorm():
            known = module.weight if module.weight is not None else module.running_mean
            module.num_features = len(known) if known is not None else module.num_features
        case nn.GroupNorm():
            module.num_channels = len(module.weight)
        case _ if is_rms(module):
            norm: Any = module
            ratio = norm.normalized_shape[0] / len(norm.weight)
            norm.weight = nn.Parameter(norm.weight.detach() * ratio**0.5, norm.weight.requires_grad)
            norm.normalized_shape, norm.eps = tuple(norm.weight.shape), norm.eps * ratio


def _lively(net: nn.Module, x: Tensor) -> nn.Module:
    """A copy in which no branch is mute: timm begins residual branches with weights of zero, which hide any mistake."""
    made = copy.deepcopy(net).train().requires_grad_(False)
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        for parameter in made.parameters():
            if parameter.dim() < 2:
                parameter.uniform_(0.5, 1.5)
            elif size := float(parameter.norm()):
                parameter.mul_(len(parameter) ** 0.5 / size)  # rows of length 1: fresh attention hardly looks anywhere
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
        for module in made.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0  # the statistics of this batch alone
        made(x if len(x) > 1 else torch.cat([x, x.flip(-1)]))  # or norms may have one value for a channel
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_var.clamp_(min=0.1)  # a channel that hardly varies would make any change explode
    return made.eval()


def _agree(net: nn.Module, x: Tensor, removal: Removal) -> bool:
    error = _error(net, x, removal)
    if TOLERANCE < error < _ROUNDING:  # deep nets may carry rounding so far
        error = _error(copy.deepcopy(net).double(), x.double(), removal)
    return error <= TOLERANCE


def _error(net: nn.Module, x: Tensor, removal: Removal) -> float:
    """By how much the sliced net and the silenced one differ, of the largest logit; infinite where one does not run."""
    try:
        small, full = sliced(net, removal), silenced(net, removal)
        with inference(small), inference(full):
            found, expected = small(x), full(x)
    except Exception:  # whatever a net or a wrong index raises: this cannot be sliced
        return math.inf
    if found.shape != expected.shape:
        return math.inf
    error = float((found - expected).abs().max() / expected.abs().max())
    return error if math.isfinite(error) else math.inf


def entries(removal: Removal) -> dict[Axis, Classes]:
    """What goes along each axis; groups that meet on one, behind a concatenation, are taken out at once."""
    gone: dict[Axis, list[Classes]] = defaultdict(list)
    for group, channels in removal.items():
        for axis, entries in group.axes.items():
            gone[axis].append(entries[list(channels)].ravel())
    return {axis: np.unique(np.concatenate(several)) for axis, several in gone.items() if sum(map(len, several))}


def _locate(net: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return net.get_submodule(parent), name


def _is_plain(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, (tuple, list)) and all(isinstance(n, int) for n in value))
