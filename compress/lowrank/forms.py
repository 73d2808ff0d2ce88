"""Forms: the rows of thinner layers that can stand for one layer, by the names of their methods."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

import students
from compress.lowrank.cp import cp, cp_energy, slice_energy
from compress.lowrank.decompose import core_energy, onto, spatial, spatial_energy, tucker
from compress.lowrank.evbmf import evbmf
from compress.lowrank.layers import Layer
from kd.errors import InputError

Ranks = tuple[int, ...]


class Part(NamedTuple):
    """One layer of a row: how `students.Replace` names it, the numbers of its weight, and where it is computed."""

    layer: dict[str, Any]
    weights: int
    positions: int


class Form(Protocol):
    """What a method makes of a layer, at ranks that are one a mode."""

    def suits(self, layer: Layer) -> bool:
        """Whether it can stand for a layer."""
        ...

    def full(self, layer: Layer) -> Ranks:
        """The ranks above which there is nothing to keep."""
        ...

    def energy(self, layer: Layer) -> Tensor:
        """What ranks keep: of (a, b, ...) the sum of [:a, :b, ...]."""
        ...

    def hint(self, layer: Layer) -> Ranks:
        """By EVBMF."""
        ...

    def row(self, layer: Layer, ranks: Ranks) -> list[Part]:
        """The layers, without their weights; the last one has the bias."""
        ...

    def factors(self, layer: Layer, ranks: Ranks) -> Sequence[Tensor]:
        """The weights of the row."""
        ...


class Svd:
    """A matrix as a product of two."""

    def suits(self, layer: Layer) -> bool:
        return layer.is_matrix

    def full(self, layer: Layer) -> Ranks:
        return (min(layer.shape),)

    def energy(self, layer: Layer) -> Tensor:
        return layer.spectrum.energy

    def hint(self, layer: Layer) -> Ranks:
        return (evbmf(self.energy(layer), max(layer.shape)),)

    def row(self, layer: Layer, ranks: Ranks) -> list[Part]:
        (outs, ins), (rank,) = layer.shape, ranks
        if isinstance(layer.module, nn.Linear):
            return [_linear(layer, ins, rank), _linear(layer, rank, outs)]
        return [_conv(ins, rank, layer.outputs, stride=list(layer.module.stride)), _conv(rank, outs, layer.outputs)]

    def factors(self, layer: Layer, ranks: Ranks) -> Sequence[Tensor]:
        return onto(layer.spectrum.basis[:, : ranks[0]], layer.weight)


class Tucker:
    """A k x l convolution between two of 1 x 1, of fewer outputs and inputs."""

    def suits(self, layer: Layer) -> bool:
        return not layer.is_matrix

    def full(self, layer: Layer) -> Ranks:
        return (layer.shape[0], layer.shape[1])

    def energy(self, layer: Layer) -> Tensor:
        return core_energy(layer.weight, layer.moment)

    def hint(self, layer: Layer) -> Ranks:
        energy, count = self.energy(layer), prod(layer.shape)
        return tuple(_noiseless(energy.sum(1 - mode), count // size) for mode, size in enumerate(energy.shape))

    def row(self, layer: Layer, ranks: Ranks) -> list[Part]:
        (outs, ins, *kernel), (outer, inner) = layer.shape, ranks
        core = _conv(inner, outer, layer.outputs, kernel_size=kernel, **_moves(layer))
        return [_conv(ins, inner, layer.inputs), core, _conv(outer, outs, layer.outputs)]

    def factors(self, layer: Layer, ranks: Ranks) -> Sequence[Tensor]:
        return tucker(layer.weight, (ranks[0], ranks[1]), layer.moment)


class Cp:
    """A k x l convolution as a depthwise one between two of 1 x 1."""

    def suits(self, layer: Layer) -> bool:
        return not layer.is_matrix

    def full(self, layer: Layer) -> Ranks:
        outs, ins, *kernel = layer.shape
        return (min(outs, ins) * prod(kernel),)

    def energy(self, layer: Layer) -> Tensor:
        return cp_energy(layer.weight, layer.moment)

    def hint(self, layer: Layer) -> Ranks:
        """The components that the slices need which it starts from."""
        longer = max(layer.shape[:2])
        return (sum(evbmf(energy, longer) for energy in slice_energy(layer.weight, layer.moment)),)

    def row(self, layer: Layer, ranks: Ranks) -> list[Part]:
        (outs, ins, *kernel), (rank,) = layer.shape, ranks
        middle = _conv(rank, rank, layer.outputs, kernel_size=kernel, groups=rank, **_moves(layer))
        return [_conv(ins, rank, layer.inputs), middle, _conv(rank, outs, layer.outputs)]

    def factors(self, layer: Layer, ranks: Ranks) -> Sequence[Tensor]:
        return cp(layer.weight, ranks[0], layer.moment)


class Spatial:
    """A k x l convolution as one of k x 1 and one of 1 x l."""

    def suits(self, layer: Layer) -> bool:
        return not layer.is_matrix

    def full(self, layer: Layer) -> Ranks:
        return (min(self._sides(layer)),)

    def energy(self, layer: Layer) -> Tensor:
        return spatial_energy(layer.weight, layer.moment)[: min(self._sides(layer))]

    def hint(self, layer: Layer) -> Ranks:
        return (evbmf(self.energy(layer), max(self._sides(layer))),)

    def row(self, layer: Layer, ranks: Ranks) -> list[Part]:
        (outs, ins, height, width), (rank,) = layer.shape, ranks
        down, along = _moves(layer, 0), _moves(layer, 1)
        return [
            _conv(ins, rank, layer.between, kernel_size=[height, 1], **down),
            _conv(rank, outs, layer.outputs, kernel_size=[1, width], **along),
        ]

    def factors(self, layer: Layer, ranks: Ranks) -> Sequence[Tensor]:
        return spatial(layer.weight, ranks[0], layer.moment)

    def _sides(self, layer: Layer) -> tuple[int, int]:
        outs, ins, height, width = layer.shape
        return outs * width, ins * height


FORMS: dict[str, Form] = {"svd": Svd(), "tucker": Tucker(), "cp": Cp(), "spatial": Spatial()}


def factors(layer: Layer, method: str, ranks: Sequence[int]) -> Sequence[Tensor]:
    """The weights of the row that `method` makes of `layer`, in the order in which they run.

    Raises InputError for ranks below 1 or above full, and `compress.lowrank.cp.Degenerate`.
    """
    full = FORMS[method].full(layer)
    if len(ranks) != len(full) or not all(1 <= rank <= most for rank, most in zip(ranks, full, strict=True)):
        raise InputError("lowrank.rank", tuple(ranks), f"of {layer.path} must be from 1 to {full}")
    return FORMS[method].factors(layer, tuple(ranks))


def put(model: students.Classifier, layer: Layer, method: str, ranks: Sequence[int], made: Sequence[Tensor]) -> None:
    """Put what `factors` made in the place of `layer`, in place."""
    module, row = layer.module, [part.layer for part in FORMS[method].row(layer, tuple(ranks))]
    weights = {}
    for place, factor in enumerate(made):
        dims = (1,) * (module.weight.dim() - factor.dim())
        weight = factor.reshape(*factor.shape, *dims).to(module.weight.dtype)
        weights[f"{layer.path}.{place}.weight"] = weight.clone(memory_format=torch.contiguous_format)
    if module.bias is not None:
        row[-1]["bias"] = True
        weights[f"{layer.path}.{len(row) - 1}.bias"] = module.bias.detach()
    students.edit(model, [students.Replace(layer.path, row)], weights)


def factorise(model: students.Classifier, layer: Layer, method: str, ranks: Sequence[int]) -> None:
    """Put factors in the place of `layer`, in place."""
    put(model, layer, method, ranks, factors(layer, method, ranks))


def _linear(layer: Layer, ins: int, outs: int) -> Part:
    return Part({"type": "Linear", "in_features": ins, "out_features": outs, "bias": False}, ins * outs, layer.outputs)


def _conv(ins: int, outs: int, positions: int, **more: Any) -> Part:
    made = {"type": "Conv2d", "in_channels": ins, "out_channels": outs, "kernel_size": 1, "bias": False, **more}
    return Part(made, ins // made.get("groups", 1) * outs * prod(more.get("kernel_size", (1,))), positions)


def _moves(layer: Layer, axis: int | None = None) -> dict[str, Any]:
    """How the kernel moves over its input, along one axis or both."""
    found: dict[str, Any] = {}
    for name, still in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = getattr(layer.module, name)
        if isinstance(value, str):  # "same" and "valid" mean the same for each axis
            found[name] = value
        else:
            found[name] = [size if axis in (None, place) else still for place, size in enumerate(value)]
    return found


def _noiseless(energy: Tensor, others: int) -> int:
    """By EVBMF, of an unfolding with so many entries along its other modes."""
    return evbmf(energy[: min(len(energy), others)], max(len(energy), others))
