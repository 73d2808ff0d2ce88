"""What Deep Compression makes of AlexNet and VGG-16 at the paper's sparsities: bytes of files, beside what is possible.

Example: python -m experiments.coding_ratio --name vgg16
There are no trained weights: they are drawn from the normal distribution (He et al. 2015). Their positions and clusters
are what a file has to tell, so its size is measured, and accuracy is not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import students
from compress import Cluster, Encode, Sparsify, masks
from compress.entropy import Coder, check_installed
from experiments import cli, untrained
from experiments.render.markdown import table
from experiments.sweep import Row
from kd.console import say
from kd.errors import InputError
from kd.evaluate import inference

DENSITIES = {
    "alexnet": (84, 38, 35, 37, 37, 9, 9, 25),
    "vgg16": (58, 22, 34, 36, 53, 24, 42, 32, 27, 34, 35, 29, 36, 4, 4, 23),
}
"""Percent of the weights of each layer that are kept (Han et al., Deep Compression, 2016, tables 4 and 5)."""
WAYS = {
    "8 and 5 bits": Cluster(8, 5),
    "8 and 5 bits, spread": Cluster(8, 5, spread=True),
    "8 and 4 bits": Cluster(8, 4),
    "8 and 4 bits, spread": Cluster(8, 4, spread=True),
    "7 and 4 bits, spread": Cluster(7, 4, spread=True),
}
"""Bits of convolutions and of linear layers. In the paper AlexNet loses 0.01 points by 8 and 4, none by 8 and 5 (table
6)."""
_IMAGES = 4


@dataclass(frozen=True)
class RatioConfig:
    """Prune, cluster and encode.

    Attributes:
        name: alexnet, vgg16, or with densities of their own any timm, CIFAR or torchvision name.
        densities: percent of the weights that are kept, one for each convolution and linear layer in order; none: the
            paper's.
        ways: which of the ways to cluster; the layers of the last one are listed.
        coders: which files are written; "range" needs the extra `coding`.
        seed: of the weights.
        json: a file that the figures are kept in, too; None: none.
    """

    name: str = "vgg16"
    densities: tuple[float, ...] = ()
    ways: tuple[str, ...] = tuple(WAYS)
    coders: tuple[Coder, ...] = ("zstd", "range")
    seed: int = 0
    json: str | None = None

    def __post_init__(self) -> None:
        if not self.densities and self.name not in DENSITIES:
            raise InputError("name", self.name, f"must be {' or '.join(DENSITIES)}, or come with densities")
        for way in self.ways:
            if way not in WAYS:
                raise InputError("ways", way, f"must be one of {'; '.join(WAYS)}")
        for name in ("ways", "coders"):
            if not getattr(self, name):
                raise InputError(name, "[]", "name at least one")
        for coder in self.coders:
            check_installed(coder)


def measure(config: RatioConfig) -> list[Row]:
    """A row for each way to cluster: the error and, by coders, bytes of the file, ratios and a row for each layer."""
    model, sparsity = _drawn(config)
    x = untrained.images(_IMAGES, model.blueprint.image_size, config.seed)
    with TemporaryDirectory() as folder:
        context = untrained.context(x, Path(folder))
        sparse, _ = Sparsify(sparsity)(model, context)
        assert isinstance(sparse, students.Classifier)
        del model
        expected = _logits(sparse, x)
        rows: list[Row] = []
        for way in config.ways:
            say(f"{config.name}: {way}")
            clustered, report = WAYS[way](sparse, context)
            lost = report.details["lost"]
            error = float((_logits(clustered, x) - expected).square().sum() / expected.square().sum())
            row: Row = {"clusters": way, "error": {"weights": sum(lost.values()), "logits": error}, "files": {}}
            for coder in config.coders:
                coded, report = Encode(coder)(clustered, context)
                _hold_same(coded, clustered)
                row["files"][coder] = report.details | {"layers": _layers(report.details["layers"], lost)}
            rows.append(row)
    return rows


def _drawn(config: RatioConfig) -> tuple[students.Classifier, dict[str, float]]:
    """The net with weights of its own, and how sparse each layer is to be."""
    name = f"tv_{config.name}" if config.name in DENSITIES else config.name
    model = untrained.build(name, 1000, seed=config.seed)
    layers = masks.layers(model.net)
    densities = config.densities or DENSITIES[config.name]
    if len(densities) != len(layers):
        raise InputError("densities", densities, f"{name} has {len(layers)} convolutions and linear layers")
    for layer in layers.values():
        nn.init.kaiming_normal_(layer.weight)
    return model, {path: 1 - kept / 100 for path, kept in zip(layers, densities, strict=True)}


def _logits(model: Any, x: Tensor) -> Tensor:
    with inference(model):
        return model(x)


def _hold_same(coded: Any, clustered: Any) -> None:
    """Every bit of the weights is that of the model that was written."""
    found = coded.classifier.net.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in clustered.net.state_dict().items())


def _layers(told: Mapping[str, Row], lost: Mapping[str, float]) -> list[Row]:
    rows = []
    for path in lost:  # in the order of the net
        if (layer := told.get(f"{path}.weight")) is None:  # a small one, stored as it is
            continue
        found, kept = layer["positions_bytes"] + layer["values_bytes"], layer["density"] * layer["entries"]
        row = {"layer": path, **layer, "error": lost[path], "bits": 8 * layer["values_bytes"] / kept}
        rows.append(row | {"above_bound_bytes": found - layer["bound_bytes"], "ratio": 4 * layer["entries"] / found})
    return rows


def render(rows: Sequence[Row]) -> str:
    """Two tables: a row for each way to cluster, and one for each layer in the last of them, by the last coder."""
    lines = []
    for row in rows:
        cells = [f"{100 * error:.2f}" for error in row["error"].values()]
        for file in row["files"].values():
            cells += [f"{file['file_bytes']:,}", f"{file['ratio']:.2f}×"]
        lines.append([row["clusters"], *cells, f"{file['bound_ratio']:.2f}×"])
    last, coders = rows[-1], list(rows[-1]["files"])
    files = [head for coder in coders for head in (f"{coder}, bytes", "ratio")]
    ways = table(("clusters", "error of weights, %", "of logits, %", *files, "ratio of the bound"), lines)
    what = f"The layers with {last['clusters']}, by {coders[-1]}:"
    return f"{ways}\n\n{what}\n\n{_listed(last['files'][coders[-1]]['layers'])}"


def _listed(layers: Sequence[Row]) -> str:
    lines = []
    for layer in layers:
        cells = [layer["layer"], f"{layer['entries']:,}", f"{100 * layer['density']:.0f}", f"{layer['clusters']}"]
        cells += [f"{layer['bits']:.2f}", f"{100 * layer['error']:.3f}"]
        cells += [f"{layer[part]:,.0f}" for part in ("positions_bytes", "values_bytes", "above_bound_bytes")]
        lines.append([*cells, f"{layer['ratio']:.1f}×"])
    heads = ("layer", "weights", "kept, %", "clusters", "bits each", "error, %", "positions, bytes", "clusters, bytes")
    return table((*heads, "above the bound", "ratio"), lines)


def main(config: RatioConfig, _: str) -> None:
    untrained.tell("coding_ratio", config.json, partial(measure, config), render)


if __name__ == "__main__":
    sys.exit(cli.run("coding_ratio", RatioConfig, main))
