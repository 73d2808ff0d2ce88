"""`Traced`: a model as pruning sees it, and the model without some of what was seen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

import students
from compress import channels, masks
from compress.channels import Channels, Group, Removal
from compress.cost import macs
from compress.labels import Axis
from compress.target import Runtime, cost_of, time_share
from kd.evaluate import inference
from students.edits import shallow

_HEAVY = 10**10  # multiply-accumulates of an image above which smaller ones are traced, where the net takes them
_LIGHT = 2 * 10**9  # and above which slices are tried on smaller ones


class Traced:
    """A model, its channels, and images to try it on.

    Attributes:
        shape: (C, H, W) of the images that costs are counted for.
        x: noise to try slices on, for slicing has to be right for any image: two images, smaller than `shape` where the
            net is heavy and allows it, and one where it is heavy and does not.
        channels: what the trace found.
        able: the groups that were seen to be right.
    """

    def __init__(self, model: students.Classifier, seed: int = 0) -> None:
        plan = model.blueprint
        self.model, self.shape = model, (plan.in_chans, plan.image_size, plan.image_size)
        self._drawn = shallow(model).to("meta")
        draws = torch.Generator().manual_seed(seed)

        def noise(images: int, side: int) -> Tensor:
            drawn = torch.rand(images, plan.in_chans, side, side, generator=draws)
            return model.normalize(drawn.to(model.mean.device))

        self._side, work = self._lighter(self.shape[1], self._work, _HEAVY)
        side, work = self._lighter(self._side, work, _LIGHT)
        self.x = noise(2 if work <= _LIGHT else 1, side)
        self.channels: Channels = channels.find(model.net, noise(1, self._side))
        self.able = channels.separable(model.net, self.x, self.channels.groups)

    def of(self, model: students.Classifier) -> Traced:
        """The same of a model that differs in its weights alone."""
        other = copy.copy(self)
        other.model = model
        return other

    def masks(self, removal: Removal, layers: Mapping[str, masks.Layer]) -> dict[str, Tensor]:
        """For the weights of layers, what stays."""
        kept = {path: torch.ones_like(weight, dtype=torch.bool) for path, weight in masks.weights(layers).items()}
        for group, gone in removal.items():
            for axis in readers(group, layers):
                index = torch.from_numpy(group.axes[axis][list(gone)].ravel())
                mask = kept[axis.path.removesuffix(".weight")]
                mask.index_fill_(axis.dim or 0, index.to(mask.device), False)
        return kept

    def silent(self) -> Removal:
        """The channels of which nothing is read."""
        layers = masks.layers(self.model.net)
        weights = {f"{path}.weight": weight for path, weight in masks.weights(layers).items()}
        removal: dict[Group, list[int]] = {}
        for group in self.able:
            read = replace(group, axes={axis: group.axes[axis] for axis in readers(group, layers)})
            heard = [rows.any(1) for rows in read.rows(weights)]
            if heard and (silent := (~torch.stack(heard).any(0)).nonzero().flatten().tolist()):
                removal[group] = silent
        return removal

    def share(self, by: str, reference: nn.Module, runtime: Runtime = "torch") -> Callable[[Removal], float]:
        """A function of what goes: the share of the reference's cost that is left; the time is that of `runtime`."""
        if by == "latency":
            time = time_share(reference, self.shape, runtime)
            return lambda removal: time(taken_out(self.model, removal))
        own = self._work if by == "macs" else cost_of(self.model, self.shape, by)
        whole = own if reference is self.model else cost_of(reference, self.shape, by)
        if by == "macs" and self._side != self.shape[-1]:
            return lambda removal: macs(taken_out(self._drawn, removal), self.shape) / whole
        untraced = own - self.channels.cost(by, {})
        return lambda removal: (untraced + self.channels.cost(by, removal)) / whole

    @cached_property
    def _work(self) -> int:
        try:
            return macs(self._drawn, self.shape)
        except Exception:  # whatever a net raises that makes tensors of its own
            return macs(self.model, self.shape)

    def _lighter(self, side: int, work: int, most: int) -> tuple[int, int]:
        """The side of an image, divided as long as it makes more work than `most` and the net takes smaller ones, and
        about how much that is: it goes with the area."""
        while work > most:
            parts = next((parts for parts in (2, 3) if side % parts == 0 and self._takes(side // parts)), None)
            if parts is None:
                break
            side, work = side // parts, work // parts**2
        return side, work

    def _takes(self, side: int) -> bool:
        try:
            with inference(self.model):
                self.model(torch.zeros(1, self.shape[0], side, side, device=self.model.mean.device))
        except Exception:  # whatever a net raises that takes no smaller images
            return False
        return True


def readers(group: Group, layers: Mapping[str, masks.Layer]) -> list[Axis]:
    """Where layers read the channels; where none does, as of the queries of attention, where layers make them. What
    makes a masked channel goes on, so that the gradient of who reads it tells whether it should come back."""
    sides = [axis for axis in group.axes if axis.path.removesuffix(".weight") in layers and axis.dim in (0, 1)]
    return [axis for axis in sides if axis.dim == 1] or sides


def taken_out(model: students.Classifier, removal: Removal) -> students.Classifier:
    """A copy of `model` without the channels, which its blueprint tells."""
    small = channels.sliced(model.net, removal)
    _retell(small)
    made = copy.deepcopy(model)
    students.edit(made, channels.changes(model.net, small), small.state_dict())
    return made


def _retell(net: nn.Module) -> None:
    """timm's nets keep the width of their features in numbers of their own."""
    classifier = getattr(net, "get_classifier", nn.Identity)()
    features = getattr(classifier, "in_features", None)
    for name in ("num_features", "head_hidden_size"):
        if features is not None and name in vars(net):
            setattr(net, name, features)
