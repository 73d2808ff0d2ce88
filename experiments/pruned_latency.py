"""Whether time follows parameters: one net, pruned in several ways, on torch and on onnxruntime.

Example: python -m experiments.pruned_latency --name resnet50 --target 0.25 --by params
No weights are needed, since time does not depend on them; so nothing is said of accuracy.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import compress
from compress import Export, OnnxModel, Prune
from compress.cost import macs
from compress.prune import By
from experiments import cli
from experiments.render.markdown import table
from experiments.sweep import CLASSES
from experiments.untrained import build, context, enliven, images, noise
from kd.evaluate import Predict

BATCHES = (1, 32)


@dataclass(frozen=True)
class LatencyConfig:
    """Prune and time.

    Attributes:
        name: a timm, CIFAR or torchvision name.
        target: the share that is kept.
        by: of which cost.
        round_to: the multiples that widths are kept at, each a row.
        image_size: pixels a side; None: as published.
        seconds: about how long is measured.
        threads: of each runtime.
    """

    name: str = "resnet50"
    target: float = 0.25
    by: By = "params"
    round_to: tuple[int, ...] = (1, 8, 16)
    image_size: int | None = None
    seconds: float = 120.0
    threads: int = 1


def compare(config: LatencyConfig) -> str:
    """A row for each way to prune: what is left of parameters, MACs and time, relative to the whole net."""
    model = build(config.name, CLASSES, config.image_size)
    x = images(2, model.blueprint.image_size)
    enliven(model, x)
    made = {"whole": model}
    with TemporaryDirectory() as folder:
        for multiple in config.round_to:
            small, _ = Prune(config.target, config.by, round_to=multiple)(model, context(x, Path(folder)))
            made[f"multiples of {multiple}"] = small
        models: dict[str, Predict] = {f"torch {name}": each for name, each in made.items()}
        files: dict[str, OnnxModel] = {
            f"onnxruntime {name}": Export().write(each, noise(x), Path(folder) / f"{place}.onnx")
            for place, (name, each) in enumerate(made.items())
        }
        told = compress.latency(models | files, tuple(x.shape[1:]), BATCHES, 10, config.threads, config.seconds)
    rows = []
    for name, each in made.items():
        params = [sum(parameter.numel() for parameter in net.parameters()) for net in (each, model)]
        work = [macs(net, tuple(x.shape[1:])) for net in (each, model)]
        cells = [f"{here / there:.3f}" for here, there in (params, work)]
        for runtime in ("torch", "onnxruntime"):
            for batch in BATCHES:
                here, there = (told[f"{runtime} {which}"][f"batch{batch}"]["p50"] for which in (name, "whole"))
                cells.append(f"{here / there:.2f}")
        rows.append([name, *cells])
    timed = [f"{runtime}, batch {batch}" for runtime in ("torch", "onnxruntime") for batch in BATCHES]
    return table(("widths", "params", "MACs", *timed), rows)


def main(config: LatencyConfig, _: str) -> None:
    print(compare(config))


if __name__ == "__main__":
    sys.exit(cli.run("pruned_latency", LatencyConfig, main))
