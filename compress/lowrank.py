"""`LowRank`: replace layers by products of thinner ones, where that lowers the cost, under one budget for the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import students
from compress.decompose import core_energy, spectrum, svd, tucker
from compress.ranks import Choice, allocate, choices
from compress.stage import Artefact, Context, Report
from compress.target import KINDS, TOLERANCE, By, check, cost_of
from kd.errors import InputError
from kd.evaluate import inference

CALIBRATION_BATCH = 32
Method = Literal["auto", "svd", "tucker"]


@dataclass(frozen=True)
class LowRank:
    """Factorise linear layers and 1x1 convolutions by SVD, k x k convolutions by Tucker-2.

    Attributes:
        target: the share of the incoming model's cost that is kept, met within 3 points where the ranks allow.
        by: which cost.
        method: "auto" does both, "svd" and "tucker" only their own layers.
        whiten: weigh errors by the second moments of activations on calibration images.
        min_rank: the least rank of a factor.
    """

    target: float = 0.5
    by: By = "macs"
    method: Method = "auto"
    whiten: bool = True
    min_rank: int = 1

    def __post_init__(self) -> None:
        check("lowrank", self.target, self.by)
        if self.method not in get_args(Method):
            raise InputError("lowrank.method", self.method, f"must be one of {', '.join(get_args(Method))}")
        if self.min_rank < 1:
            raise InputError("lowrank.min_rank", self.min_rank, "must be 1 or more")

    def toward(self, share: float) -> LowRank:
        """Itself: the target is a share of what comes in, so that `Repeat` takes that share anew in each round."""
        return self

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError for a model that is a file, does not take the images, or whose logits are not finite."""
        if not isinstance(model, students.Classifier):
            raise InputError("stages", "lowrank", "must come before export: a file has no layers to factorise")
        images = context.images().to(model.mean.device)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        layers = [layer for layer in look(model, images, self.whiten) if self.method in ("auto", layer.method)]
        whole = cost_of(model, shape, self.by)
        chosen = self._choose(layers, whole)
        made = copy.deepcopy(model)
        for layer, choice in zip(layers, chosen, strict=True):
            if choice.ranks:
                factorise(made, layer, choice.ranks)
        told = {
            layer.path: {"method": layer.method, "rank": list(choice.ranks), "lost": choice.lost}
            for layer, choice in zip(layers, chosen, strict=True)
            if choice.ranks
        }
        kept = {by: cost_of(made, shape, by) / cost_of(model, shape, by) for by in KINDS}
        details = {"kept_macs": kept["macs"], "kept_params": kept["params"], "layers": told}
        return made.eval(), Report("lowrank", self._notes(kept[self.by], told), details)

    def _choose(self, layers: Sequence[Layer], whole: int) -> list[Choice]:
        options = [_choices(layer, self.by, self.min_rank) for layer in layers]
        rest = whole - sum(option[0].cost for option in options)  # what is not up for choice
        return allocate(options, int(self.target * whole) - rest)

    def _notes(self, kept: float, told: dict[str, dict[str, Any]]) -> tuple[str, ...]:
        if not told:
            return (f"No layer that {self.method} could factorise is cheaper for it: the model is unchanged.",)
        worst = max(told, key=lambda path: told[path]["lost"])
        mean = sum(layer["lost"] for layer in told.values()) / len(told)
        of = "outputs" if self.whiten else "weights"
        notes = [
            f"{len(told)} layers are factorised, at a loss of up to {mean:.0%} of the energy of their {of} on average, "
            f"{told[worst]['lost']:.0%} in {worst}."
        ]
        if abs(kept - self.target) > TOLERANCE:
            floor = f"every factor is at rank {self.min_rank}, the other layers do not factorise or gain nothing"
            why = floor if kept > self.target else "the ranks of its layers allow no closer"
            notes.append(f"{kept:.0%} of the {self.by} are kept instead of {self.target:.0%}: {why}.")
        return tuple(notes)


@dataclass
class Layer:
    """A layer that can be factorised, and what calibration images told of it.

    Attributes:
        inputs, outputs: how many positions it reads and writes for one image.
        moment: of the activations, as `compress.decompose` wants it; none where it was not asked for.
    """

    path: str
    module: nn.Linear | nn.Conv2d
    inputs: int = 0
    outputs: int = 0
    moment: Tensor | None = None

    @property
    def method(self) -> str:
        return "svd" if isinstance(self.module, nn.Linear) or self.module.kernel_size == (1, 1) else "tucker"

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs) or (outputs, inputs, k, k)."""
        weight = self.module.weight.detach().cpu()
        return weight.flatten(1) if self.method == "svd" else weight

    @property
    def told_by_outputs(self) -> bool:
        return self.method == "svd" and self.module.weight.shape[0] < self.module.weight.shape[1]

    def note(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook that adds up positions and moments."""
        x, out = inputs[0].detach(), output.detach()
        if isinstance(self.module, nn.Conv2d):
            x, out = x.movedim(1, -1), out.movedim(1, -1)
        self.inputs += x[..., 0].numel()
        self.outputs += out[..., 0].numel()
        if self.moment is None:
            return
        if self.told_by_outputs:
            rows = out if self.module.bias is None else out - self.module.bias.detach()
        elif self.method == "svd" and isinstance(self.module, nn.Conv2d):
            rows = x[:, :: self.module.stride[0], :: self.module.stride[1]]
        else:
            rows = x
        rows = rows.flatten(0, -2).float()
        self.moment += (rows.T @ rows).cpu()


def look(model: students.Classifier, images: Tensor, whiten: bool) -> list[Layer]:
    """The layers of `model` that can be factorised, after it has seen the (N, C, H, W) images.

    Raises InputError where it does not take the images, or its logits are not finite.
    """
    layers = [Layer(path, module) for path, module in _candidates(model, images[:1])]
    for layer in layers:
        if whiten:
            side = layer.module.weight.shape[0 if layer.told_by_outputs else 1]
            layer.moment = torch.zeros(side, side, dtype=torch.float64)
    handles = [layer.module.register_forward_hook(layer.note) for layer in layers]
    try:
        with inference(model):
            for batch in images.split(CALIBRATION_BATCH):
                if not torch.isfinite(model(batch)).all():
                    raise InputError("model", type(model.net).__name__, "gives NaN or infinite logits")
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        layer.inputs, layer.outputs = layer.inputs // len(images), layer.outputs // len(images)
    return [layer for layer in layers if layer.outputs]


def _candidates(model: students.Classifier, x: Tensor) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers for which a row of layers may stand: nothing in the net looks into them."""
    made = copy.deepcopy(model)
    try:
        with inference(model):
            expected = model(x)
    except (RuntimeError, AssertionError, ValueError) as error:
        shape = tuple(x.shape[1:])
        raise InputError("model", model.blueprint.name, f"cannot take images of {shape} ({error})") from error

    def stand_in(paths: Sequence[str]) -> bool:
        for path in paths:
            made.net.set_submodule(path, nn.Sequential(made.net.get_submodule(path)))
        try:
            with inference(made):
                return torch.allclose(made(x), expected, equal_nan=True)
        except (AttributeError, TypeError):
            return False
        finally:
            for path in paths:
                made.net.set_submodule(path, made.net.get_submodule(f"{path}.0"))

    found = dict(_factorisable(model.net))
    if not stand_in(list(found)):
        found = {path: module for path, module in found.items() if stand_in([path])}
    return list(found.items())


def _factorisable(net: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Linear layers and convolutions for which a product can stand, none of a type derived from them."""
    for path, module in net.named_modules():
        if type(module) is nn.Linear and path:
            yield path, module
        if type(module) is nn.Conv2d and path and module.groups == 1 and module.padding_mode == "zeros":
            padded = module.padding not in ((0, 0), "valid")
            if not (module.kernel_size == (1, 1) and padded):
                yield path, module


def _choices(layer: Layer, by: By, least: int) -> list[Choice]:
    outs, ins, *kernel = layer.weight.shape
    reads, writes = (layer.inputs, layer.outputs) if by == "macs" else (1, 1)
    whole = layer.weight.numel() * writes
    if layer.method == "svd":
        energy = spectrum(layer.weight, layer.moment).energy
        return choices(whole, energy, lambda rank: rank * (ins + outs) * writes, least)
    area = kernel[0] * kernel[1]

    def cost(outer: int, inner: int) -> int:
        return ins * inner * reads + (inner * outer * area + outer * outs) * writes

    return choices(whole, core_energy(layer.weight, layer.moment), cost, least)


def factorise(model: students.Classifier, layer: Layer, ranks: Sequence[int]) -> None:
    """Put the factors of `layer` into `model`, in place; `ranks` are one for "svd", outer and inner for "tucker"."""
    module = layer.module
    outs, ins, *kernel = layer.weight.shape
    bias = module.bias is not None
    if layer.method == "svd":
        factors: Sequence[Tensor] = svd(layer.weight, ranks[0], layer.moment)
        if isinstance(module, nn.Linear):
            row = [_linear(ins, ranks[0]), _linear(ranks[0], outs, bias)]
        else:
            row = [_conv(ins, ranks[0], stride=list(module.stride)), _conv(ranks[0], outs, bias=bias)]
    else:
        outer, inner = ranks
        factors = tucker(layer.weight, (outer, inner), layer.moment)
        same = {name: _plain(getattr(module, name)) for name in ("stride", "padding", "dilation")}
        core = _conv(inner, outer, kernel_size=kernel, **same)
        row = [_conv(ins, inner), core, _conv(outer, outs, bias=bias)]
    weights = {}
    for place, factor in enumerate(factors):
        dims = (1,) * (module.weight.dim() - factor.dim())
        weight = factor.reshape(*factor.shape, *dims).to(module.weight.dtype)
        weights[f"{layer.path}.{place}.weight"] = weight.clone(memory_format=torch.contiguous_format)
    if module.bias is not None:
        weights[f"{layer.path}.{len(row) - 1}.bias"] = module.bias.detach()
    students.edit(model, [students.Replace(layer.path, row)], weights)


def _linear(ins: int, outs: int, bias: bool = False) -> dict[str, Any]:
    return {"type": "Linear", "in_features": ins, "out_features": outs, "bias": bias}


def _conv(ins: int, outs: int, **more: Any) -> dict[str, Any]:
    return {"type": "Conv2d", "in_channels": ins, "out_channels": outs, "kernel_size": 1, "bias": False, **more}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
