"""How much smaller and faster a net of many parameters becomes by factors, on torch and on onnxruntime.

Example: python -m experiments.lowrank_latency --name tv_vgg16 --method tucker --dense 0.33 --macs 0.25
First the fully connected layers become products by SVD, then the convolutions by another method. No weights are needed,
since time does not depend on them; so nothing is said of accuracy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from torch import nn

import compress
from compress import LowRank
from compress.export import deployed
from compress.lowrank.lowrank import Method
from compress.target import KINDS, cost_of
from experiments import cli
from experiments.render.markdown import table
from experiments.sweep import Row, distance, hold
from experiments.untrained import build, context, images, tell
from kd.errors import InputError
from kd.evaluate import Predict, inference

CLASSES = 1000  # of which large layers are part of what is published
COSTS = KINDS[::-1]
RUNTIMES = ("torch", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit, between the runtimes


@dataclass(frozen=True)
class LatencyConfig:
    """Factorise and time.

    Attributes:
        name: a timm, CIFAR or torchvision name.
        method: for the convolutions.
        dense: the share of the parameters that the first step keeps, which factorises fully connected layers.
        macs: the share of the multiply-accumulates that the second step keeps, which factorises convolutions.
        image_size: pixels a side; None: as published.
        rounds: measurements, one after the other.
        seconds: about how long each of them takes.
        threads: of each runtime.
        json: a file that the figures are kept in, too; None: none.
    """

    name: str = "tv_alexnet"
    method: Method = "cp"
    dense: float = 0.18
    macs: float = 0.45
    image_size: int | None = None
    rounds: int = 5
    seconds: float = 30.0
    threads: int = 1
    json: str | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError("rounds", self.rounds, "must be 1 or more")

    @property
    def stages(self) -> tuple[LowRank, ...]:
        """Weights that nobody trained have no directions to whiten."""
        dense = LowRank(self.dense, by="params", method="svd", whiten=False)
        return dense, LowRank(self.macs, by="macs", method=self.method, whiten=False)


def measure(config: LatencyConfig) -> list[Row]:
    """A row for the whole net and one for its factors: parameters, MACs, and by rounds time and how much faster."""
    whole = build(config.name, CLASSES, config.image_size)
    x = images(2, whole.blueprint.image_size)
    shape = tuple(x.shape[1:])
    model: nn.Module = whole
    made = {"whole": model}
    with TemporaryDirectory() as folder:
        for stage in config.stages:
            model, _ = stage(model, context(x, Path(folder)))
        made["factors"] = model
        forms: dict[str, Predict] = {}
        for name, each in made.items():
            forms[f"torch {name}"] = each
            forms[f"onnxruntime {name}"] = file = deployed(each, x, Path(folder) / f"{name}.onnx")
            with inference(each):
                hold(distance(file(x), each(x)) < TOLERANCE, f"{name}: the runtimes answer otherwise")
        rounds = [compress.latency(forms, shape, (1,), 5, config.threads, config.seconds) for _ in range(config.rounds)]
    rows: list[Row] = []
    for name, each in made.items():
        row: Row = {"net": name, **{by: cost_of(each, shape, by) for by in COSTS}}
        row["milliseconds"] = {
            runtime: [found[f"{runtime} {name}"]["batch1"]["p50"] for found in rounds] for runtime in RUNTIMES
        }
        rows.append(row)
    for row in rows:
        row["fewer"] = {by: rows[0][by] / row[by] for by in COSTS}
        row["faster"] = {
            runtime: [before / after for before, after in zip(rows[0]["milliseconds"][runtime], times, strict=True)]
            for runtime, times in row["milliseconds"].items()
        }
    return rows


def render(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        cells = [f"{row[by] / 1e6:.2f} M ({row['fewer'][by]:.2f}×)" for by in COSTS]
        for times in row["faster"].values():
            cells.append(f"{median(times):.2f}× ({min(times):.2f} to {max(times):.2f})")
        lines.append([row["net"], *cells])
    return table(("net", "params (fewer)", "MACs (fewer)", *(f"faster on {runtime}" for runtime in RUNTIMES)), lines)


def main(config: LatencyConfig, _: str) -> None:
    tell("lowrank_latency", config.json, partial(measure, config), render)


if __name__ == "__main__":
    sys.exit(cli.run("lowrank_latency", LatencyConfig, main))
