"""`Cluster`: the weights of a layer share few values, so that each is told by a few bits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

import students
from compress import masks
from compress.kmeans import Array, Clusters, Line, Start, lloyd, start
from compress.masks import Layer, Tensors
from compress.stage import Artefact, Context, Report
from kd.errors import InputError

BITS = range(2, 9)
_HALVINGS = 20  # of the range of prices
_RANGE = 1e5  # by which a price may be off at first, either way
_STEPS = 100  # of k-means at a price, which is near its end soon


@dataclass(frozen=True)
class Cluster:
    """Replace the weights of each layer by the centres of their clusters: k-means of numbers, a layer at a time.

    Zeros stay zeros and have no cluster; biases and norms are left alone. What comes out is a plain model: `Recover`
    keeps weights equal that are equal, `Encode` turns them into a small file (Han et al., Deep Compression, 2016).

    Attributes:
        conv_bits, linear_bits: 2^bits clusters for each convolution and each linear layer, 2 to 8 bits.
        start: of k-means: "linear": even over the range of the weights, which the paper finds best; "density": even
            over their ranks; "random".
        spread: take those numbers of clusters for a limit of the error alone, the sum over layers of the shares of
            their energy that are lost. Within it, clusters are as many, up to 256 a layer, and lie where an ideal code
            needs the fewest bits, one price of a bit for all layers.
        curvature: weigh errors by the curvature of the loss, from calibration samples, within layers and between them
            (Choi et al., Towards the limit of network quantization, 2017).
    """

    conv_bits: int = 8
    linear_bits: int = 5
    start: Start = "linear"
    spread: bool = False
    curvature: bool = False

    def __post_init__(self) -> None:
        for name in ("conv_bits", "linear_bits"):
            bits = getattr(self, name)
            if type(bits) is not int or bits not in BITS:
                raise InputError(f"cluster.{name}", bits, f"must be a whole number from {BITS[0]} to {BITS[-1]}")
        if self.start not in get_args(Start):
            raise InputError("cluster.start", self.start, f"must be one of {', '.join(get_args(Start))}")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError for a model that is a file already, and for weights that are not finite."""
        if not isinstance(model, students.Classifier):
            raise InputError("stages", "cluster", "must come before export: a file has no weights to share")
        students.check_plain(model)
        made = copy.deepcopy(model)
        layers = {path: layer for path, layer in masks.layers(made.net).items() if layer.weight.any()}
        importance = masks.curvature(model, *context.labelled()) if self.curvature else None
        lines = {path: _line(path, layer, importance) for path, layer in layers.items()}
        found = {
            path: lloyd(line, start(line, 2 ** self._bits(layers[path]), self.start, context.seed))
            for path, line in lines.items()
        }
        if self.spread and found:
            found = self._spread(lines, found, context.seed)
        for path, layer in layers.items():
            _replace(layer.weight, found[path])
        details = {
            "clusters": {path: len(clusters.centres) for path, clusters in found.items()},
            "lost": {path: _share(clusters, lines[path]) for path, clusters in found.items()},
            "bits": {path: clusters.bits / int(clusters.counts.sum()) for path, clusters in found.items()},
        }
        return made.eval(), Report("cluster", (*self._notes(details), *masks.others(made.net)), details)

    def _bits(self, layer: Layer) -> int:
        return self.conv_bits if isinstance(layer, nn.Conv2d) else self.linear_bits

    def _unit(self, line: Line) -> float:
        """What errors of a layer count: where the loss does not say it, relative to the energy of its weights."""
        return 1.0 if self.curvature else 1 / line.energy

    def _spread(self, lines: Mapping[str, Line], found: dict[str, Clusters], seed: int) -> dict[str, Clusters]:
        """Clusters of no more error than `found` in all, that an ideal code tells in the fewest bits."""
        units = {path: self._unit(line) for path, line in lines.items()}
        limit = sum(found[path].error * unit for path, unit in units.items())
        starts = {path: start(line, 2 ** BITS[-1], self.start, seed) for path, line in lines.items()}
        usual = limit / sum(len(line.values) for line in lines.values())
        low, high = usual / _RANGE, usual * _RANGE
        for _ in range(_HALVINGS if limit > 0 else 0):
            price = (low * high) ** 0.5
            there = {path: lloyd(line, starts[path], price / units[path], _STEPS) for path, line in lines.items()}
            within = sum(there[path].error * unit for path, unit in units.items()) <= limit
            low, high = (price, high) if within else (low, price)
            if within and _bits(there) < _bits(found):
                found = there
        return found

    def _notes(self, details: Mapping[str, Any]) -> tuple[str, ...]:
        lost: dict[str, float] = details["lost"]
        if not lost:
            return ("No convolution or linear layer has weights to share: the model is unchanged.",)
        worst = max(lost, key=lambda path: lost[path])
        of = "what the loss makes of its weights" if self.curvature else "its energy"
        return (
            f"The weights of {len(lost)} layers take {min(details['clusters'].values())} to "
            f"{max(details['clusters'].values())} values each. Answers are worse for it, until `Recover`: at most "
            f"{lost[worst]:.2%} of {of} is lost, in {worst}. Only `Encode` makes a smaller file; memory and time stay.",
        )


def _line(path: str, layer: Layer, importance: Tensors | None) -> Line:
    weight = _values(layer.weight)
    if not np.isfinite(weight).all():
        raise InputError("model", path, "has weights that are NaN or infinite")
    there = weight != 0
    return Line.of(weight[there], None if importance is None else _values(importance[path])[there])


def _replace(weight: Tensor, clusters: Clusters) -> None:
    """Put the centre of its cluster in the place of each weight that is not 0."""
    values = _values(weight)
    there = values != 0
    values[there] = clusters.centres.astype(np.float32)[clusters.labels(values[there])]
    weight.data.copy_(torch.from_numpy(values).view(weight.shape))


def _values(weight: Tensor) -> Array:
    """(n,) float32, the tensor's own where it is such."""
    return weight.detach().float().flatten().cpu().numpy()


def _share(clusters: Clusters, line: Line) -> float:
    return clusters.error / line.energy if line.energy else 0.0


def _bits(found: Mapping[str, Clusters]) -> float:
    return sum(clusters.bits for clusters in found.values())
