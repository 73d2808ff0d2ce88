"""`LowRank`: replace layers by products of thinner ones, where that lowers the cost, under one budget for the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

import students
from compress.cost import macs
from compress.decompose import Spectrum, Whitening, mode_energies, spectrum, tucker, whitening
from compress.stage import Artefact, Context, Report
from kd.errors import InputError
from kd.evaluate import inference

LEVELS = 32  # ranks that are tried a layer
TOLERANCE = 0.03  # of the share that is asked for
CALIBRATION_BATCH = 32
By = Literal["macs", "params"]


@dataclass
class Layer:
    """A layer that could be factorised, and what one pass over calibration images told of it."""

    path: str
    module: nn.Linear | nn.Conv2d
    inputs: int = 0  # positions at which its input lies, for one image
    outputs: int = 0
    moment: Tensor | None = None
    choices: list[Choice] = field(default_factory=list)

    @property
    def is_matrix(self) -> bool:
        return isinstance(self.module, nn.Linear) or self.module.kernel_size == (1, 1)


@dataclass(frozen=True)
class Choice:
    """One way to have a layer: ranks of its factors (none: as it is), what it costs, the share of energy it loses."""

    ranks: tuple[int, ...]
    cost: int
    lost: float


@dataclass(frozen=True)
class LowRank:
    """Factorise linear layers and 1x1 convolutions by SVD, k x k convolutions by Tucker-2.

    Attributes:
        target: the share of the incoming model's cost that is kept, met within 3 points where ranks allow.
        by: which cost.
        method: "auto" does both, "svd" and "tucker" only their own layers.
        whiten: weigh errors by the second moments of the inputs on calibration images.
        min_rank: the least rank of a factor.
    """

    target: float = 0.5
    by: By = "macs"
    method: Literal["auto", "svd", "tucker"] = "auto"
    whiten: bool = True
    min_rank: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise InputError("lowrank.target", self.target, "must be above 0 and below 1")
        if self.by not in ("macs", "params"):
            raise InputError("lowrank.by", self.by, "must be macs or params")
        if self.method not in ("auto", "svd", "tucker"):
            raise InputError("lowrank.method", self.method, "must be auto, svd or tucker")
        if self.min_rank < 1:
            raise InputError("lowrank.min_rank", self.min_rank, "must be 1 or more")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError for a model that is a file already, or whose activations are not finite."""
        if not isinstance(model, students.Classifier):
            raise InputError("stages", "lowrank", "must come before export: a file has no layers to factorise")
        images = context.images()
        layers = [layer for layer in _look(model, images, self.whiten) if self.method in ("auto", _method(layer))]
        for layer in layers:
            layer.choices = _choices(layer, self.by, self.min_rank)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        before = _cost(model, shape, self.by)
        chosen = _allocate(layers, before, self.target)
        if not any(choice.ranks for choice in chosen):
            return model, Report("lowrank", ("No layer is cheaper factorised: the model is unchanged.",))
        made = copy.deepcopy(model)
        details: dict[str, Any] = {"layers": {}}
        for layer, choice in zip(layers, chosen, strict=True):
            if choice.ranks:
                _replace(made, layer, choice)
                details["layers"][layer.path] = {"method": _method(layer), "rank": choice.ranks, "lost": choice.lost}
        kept = _cost(made, shape, self.by) / before
        notes = []
        if abs(kept - self.target) > TOLERANCE:
            why = "the least ranks allow no less" if kept > self.target else "the ranks of its layers allow no closer"
            notes.append(f"{kept:.0%} of the {self.by} are kept instead of {self.target:.0%}: {why}.")
        return made.eval(), Report("lowrank", tuple(notes), details | {f"kept_{self.by}": kept})


def _method(layer: Layer) -> str:
    return "svd" if layer.is_matrix else "tucker"


def _cost(model: nn.Module, shape: tuple[int, int, int], by: By) -> int:
    return macs(model, shape) if by == "macs" else sum(p.numel() for p in model.parameters())


def _candidates(net: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for path, module in net.named_modules():
        if type(module) is nn.Linear or (type(module) is nn.Conv2d and _splits(module)):
            yield path, module


def _splits(conv: nn.Conv2d) -> bool:
    """Whether a product of convolutions can stand for this one."""
    padded = conv.kernel_size == (1, 1) and conv.padding not in ((0, 0), "valid")
    return conv.groups == 1 and conv.padding_mode == "zeros" and not padded


def _look(model: students.Classifier, images: Tensor, whiten: bool) -> list[Layer]:
    """Show the images to the model; returns the layers that ran, with positions and moments."""
    layers = {path: Layer(path, module) for path, module in _candidates(model.net)}

    def hook(layer: Layer) -> Callable[..., None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0]
            rows = x.flatten(0, -2) if isinstance(module, nn.Linear) else x.transpose(0, 1).flatten(1).T
            layer.inputs = len(rows) // len(x)
            layer.outputs = output.numel() // len(x) // layer.module.weight.shape[0]
            if whiten:
                moment = (rows.T @ rows).double()
                layer.moment = moment if layer.moment is None else layer.moment + moment

        return note

    handles = [layer.module.register_forward_hook(hook(layer)) for layer in layers.values()]
    try:
        with inference(model):
            for batch in images.split(CALIBRATION_BATCH):
                if not torch.isfinite(model(batch)).all():
                    raise InputError("model", type(model.net).__name__, "gives NaN or infinite logits")
    finally:
        for handle in handles:
            handle.remove()
    return [layer for layer in layers.values() if layer.outputs]


def _white(layer: Layer) -> Whitening | None:
    return None if layer.moment is None else whitening(layer.moment)


def _choices(layer: Layer, by: By, least: int) -> list[Choice]:
    """The layer as it is, then every way to factorise it that is cheaper."""
    weight = layer.module.weight.detach()
    places, places_in = (layer.outputs, layer.inputs) if by == "macs" else (1, 1)
    whole = Choice((), weight.numel() * places, 0.0)
    found = []
    if layer.is_matrix:
        outs, ins = weight.shape[0], weight.shape[1]
        energy = spectrum(weight.flatten(1), _white(layer)).energy
        for rank in _levels(least, len(energy)):
            found.append(Choice((rank,), rank * (ins + outs) * places, _tail(energy, rank)))
    else:
        outs, ins, *kernel = weight.shape
        outer, inner = mode_energies(weight, _white(layer))
        for rank in _levels(least, outs):
            lost = _tail(outer, rank)
            # the input mode is cut where it loses as much
            match = next(r for r in range(min(least, ins), ins + 1) if _tail(inner, r) <= lost + 1e-12 or r == ins)
            core = rank * match * kernel[0] * kernel[1] * places
            cost = match * ins * places_in + core + rank * outs * places
            found.append(Choice((rank, match), cost, lost + _tail(inner, match)))
    return [whole, *(choice for choice in found if choice.cost < whole.cost)]


def _levels(least: int, full: int) -> list[int]:
    count = min(LEVELS, full)
    return sorted({max(min(least, full), round(full * (i + 1) / count)) for i in range(count)})


def _tail(energy: Tensor, rank: int) -> float:
    return float(energy[rank:].sum() / energy.sum().clamp(min=1e-300))


def _allocate(layers: list[Layer], total: int, target: float) -> list[Choice]:
    """The choice a layer: one price of cost for all (bisected), the energy lost and the cost traded at that price."""
    fixed = total - sum(layer.choices[0].cost for layer in layers)

    def at(price: float) -> list[Choice]:
        return [min(layer.choices, key=lambda c: c.lost + price * c.cost / total) for layer in layers]

    def kept(chosen: list[Choice]) -> float:
        return (fixed + sum(choice.cost for choice in chosen)) / total

    low, high = 1e-9, 1e9
    if kept(at(high)) > target:
        return at(high)
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if kept(at(middle)) <= target else (middle, high)
    return min((at(low), at(high)), key=lambda chosen: abs(kept(chosen) - target))


def _replace(model: students.Classifier, layer: Layer, choice: Choice) -> None:
    """Put the factors of `choice` into the model."""
    module, weight = layer.module, layer.module.weight.detach()
    bias = module.bias is not None
    outs, ins, *kernel = weight.shape
    if layer.is_matrix:
        parts: Spectrum = spectrum(weight.flatten(1), _white(layer))
        left, right = parts.cut(choice.ranks[0])
        factors = [right, left]
        rank = choice.ranks[0]
        if isinstance(module, nn.Linear):
            rows: list[dict[str, Any]] = [
                {"type": "Linear", "in_features": ins, "out_features": rank, "bias": False},
                {"type": "Linear", "in_features": rank, "out_features": outs, "bias": bias},
            ]
        else:
            rows = [_conv(ins, rank, 1, stride=list(module.stride)), _conv(rank, outs, 1, bias=bias)]
    else:
        outer, inner = choice.ranks
        factors = list(tucker(weight, (outer, inner), _white(layer)))
        shape = {name: _plain(getattr(module, name)) for name in ("stride", "padding", "dilation")}
        rows = [
            _conv(ins, inner, 1),
            _conv(inner, outer, list(kernel), **shape),
            _conv(outer, outs, 1, bias=bias),
        ]
    weights = {}
    for index, (factor, row) in enumerate(zip(factors, rows, strict=True)):
        flat = row["type"] == "Linear" or factor.dim() == 4
        weights[f"{layer.path}.{index}.weight"] = (factor if flat else factor[:, :, None, None]).to(weight.dtype)
    if module.bias is not None:
        weights[f"{layer.path}.{len(rows) - 1}.bias"] = module.bias.detach()
    students.edit(model, [students.Replace(layer.path, rows)], weights)


def _conv(ins: int, outs: int, kernel: int | list[int], bias: bool = False, **more: Any) -> dict[str, Any]:
    return {"type": "Conv2d", "in_channels": ins, "out_channels": outs, "kernel_size": kernel, "bias": bias, **more}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
