"""Edits: what pruning, factorising and SimKD did to a net, as plain values that repeat it, without pickle."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kd.batch import Place
from kd.errors import InputError
from kd.losses.feature.sim_kd import Reclassified, projector
from students.classifier import Classifier

Net = TypeVar("Net", bound=nn.Module)
_set = object.__setattr__  # the classes are frozen
LAYERS: dict[str, type[nn.Module]] = {"Conv2d": nn.Conv2d, "Linear": nn.Linear, "Identity": nn.Identity}


@dataclass(frozen=True)
class Resize:
    """Other shapes and settings for one module.

    Attributes:
        module: its path in the net, such as `layer1.0.conv1`; "" is the net itself.
        attributes: plain attributes that it has, with their new values.
        shapes: parameters and buffers that it has, with their new shapes.
    """

    module: str
    attributes: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:  # lists, as JSON gives them back
        _set(self, "attributes", {k: list(v) if isinstance(v, tuple) else v for k, v in self.attributes.items()})
        _set(self, "shapes", {name: list(shape) for name, shape in self.shapes.items()})
        if not all(type(size) is int and size > 0 for shape in self.shapes.values() for size in shape):
            raise _refusal(self, f"the sizes in {self.shapes} must be whole numbers from 1 up")

    def apply(self, net: nn.Module) -> nn.Module:
        module = _find(net, self.module)
        for name, value in self.attributes.items():
            if name.startswith("_") or name not in vars(module):
                raise _refusal(self, f"{type(module).__name__} has no attribute {name}")
            setattr(module, name, tuple(value) if isinstance(getattr(module, name), tuple) else value)
        for name, shape in self.shapes.items():
            old = getattr(module, name, None)
            if not isinstance(old, Tensor):
                raise _refusal(self, f"{type(module).__name__} has no parameter or buffer {name}")
            new = _like(old, shape)
            setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        return net


@dataclass(frozen=True)
class Replace:
    """A row of layers in the place of one module; they are found below its path, as `layer1.0.conv1.0`.

    An empty row hands on what it is given.

    Attributes:
        module: its path in the net.
        layers: for each, its "type" (Conv2d, Linear or Identity) and its keyword arguments.
    """

    module: str
    layers: list[dict[str, Any]]

    def __post_init__(self) -> None:
        _set(self, "layers", [dict(layer) for layer in self.layers])

    def apply(self, net: nn.Module) -> nn.Module:
        old = _find(net, self.module)
        place = next(old.parameters(), torch.empty(0))
        try:
            row = [LAYERS[layer["type"]](**{k: v for k, v in layer.items() if k != "type"}) for layer in self.layers]
            net.set_submodule(self.module, nn.Sequential(*row).to(place.device, place.dtype).train(old.training))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _refusal(self, f"a layer cannot be made ({error!r})") from error
        return net


@dataclass(frozen=True)
class Reclassify:
    """A `kd.losses.feature.sim_kd.Reclassified` around the net, whose modules are found below `net` from then on.

    Attributes:
        last: where the last stage map is found; None where timm's protocol tells it.
        size: (H, W) that a larger map is pooled to.
        widths: channels of the map, within the projector, and after it.
        classes: number of logits.
    """

    last: Place | None
    size: list[int]
    widths: list[int]
    classes: int

    def __post_init__(self) -> None:
        if self.last is not None:
            module, call, grid, channels_last = self.last
            _set(self, "last", Place(module, call, (grid[0], grid[1]), channels_last))
        _set(self, "size", list(self.size))
        _set(self, "widths", list(self.widths))
        counts = [*self.size, *self.widths, self.classes]
        if (len(self.size), len(self.widths)) != (2, 3) or not all(type(n) is int and n > 0 for n in counts):
            raise _refusal(self, f"{counts} must be two sizes, three widths and the classes, from 1 up")

    def apply(self, net: nn.Module) -> nn.Module:
        if self.last is not None:
            _find(net, self.last.module)
        elif not hasattr(net, "forward_intermediates"):
            raise _refusal(self, f"{type(net).__name__} does not tell its last stage")
        place = next(net.parameters(), torch.empty(0))
        height, width = self.size
        classifier = nn.Linear(self.widths[-1], self.classes)
        made = Reclassified(net, projector(*self.widths), classifier, (height, width), self.last)
        return made.to(place.device, place.dtype).train(net.training)


Edit = Resize | Replace | Reclassify


def edit(model: Classifier, edits: Sequence[Edit], weights: Mapping[str, Tensor] | None = None) -> None:
    """Give `model` an edited net in the place of its own, and note the edits in its blueprint: all of them, or none.

    Args:
        weights: by their names in `model.net.state_dict()` after the edits, values of whatever entries have new ones.
            A new layer that is not among them is drawn afresh; a resized tensor has the mean and deviation of the old.

    Raises InputError for an edit that does not fit the net, or weights that do not fit the edits.
    """
    net = shallow(model.net)
    for each in edits:
        net = each.apply(net)
    if weights is not None:
        state = net.state_dict()
        for name, value in weights.items():
            if name not in state or state[name].shape != value.shape:
                found = tuple(state[name].shape) if name in state else "no such entry"
                raise InputError("weights", f"{name} {tuple(value.shape)}", f"the edited net has {found}")
        fill(net, weights)
    model.net, model.blueprint = net, replace(model.blueprint, edits=(*model.blueprint.edits, *edits))


def shallow(net: Net) -> Net:
    """A copy that shares every tensor but what a net keeps of its answers, as LeViT does of its biases."""
    for module in net.modules():
        for name, value in vars(module).items():
            if name.endswith("_cache") and isinstance(value, dict):
                value.clear()
    return copy.deepcopy(net, {id(tensor): tensor for tensor in chain(net.parameters(), net.buffers())})


def fill(net: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give entries of the state dict of `net` copies of new values, and their type; they stay on their device."""
    own = net.state_dict()
    state = OrderedDict((name, value.detach().to(own[name].device, copy=True)) for name, value in values.items())
    state._metadata = own._metadata  # type: ignore[attr-defined]  # the versions of modules: some ask for it
    net.load_state_dict(state, strict=False, assign=True)


def to_dict(edit: Edit) -> dict[str, Any]:
    return {"kind": type(edit).__name__, **asdict(edit)}


def from_dict(values: Any) -> Edit:
    """Raises InputError where `values` describe no edit."""
    kinds: dict[str, type[Edit]] = {kind.__name__: kind for kind in (Resize, Replace, Reclassify)}
    try:
        fields = dict(values)
        return kinds[fields.pop("kind")](**fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("blueprint.edits", repr(values), "is no Resize, Replace or Reclassify") from error


def _find(net: nn.Module, path: str) -> nn.Module:
    try:
        return net.get_submodule(path)
    except AttributeError as error:
        raise InputError("blueprint.edits", path, f"{type(net).__name__} has no such module") from error


def _refusal(edit: Edit, why: str) -> InputError:
    return InputError("blueprint.edits", getattr(edit, "module", type(edit).__name__), why)


def _like(old: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of another shape, drawn with the mean and the deviation of the old one."""
    new = old.new_empty(shape)
    if old.is_floating_point() and not old.is_meta:
        new.normal_(float(old.detach().mean()), float(old.detach().std(correction=0)))
    return new
