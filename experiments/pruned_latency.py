"""Whether time follows parameters: one net, pruned in several ways, on torch and on onnxruntime.

Example: python -m experiments.pruned_latency --name resnet50 --target 0.25 --by params
No weights are needed, since time does not depend on them; so nothing is said of accuracy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import compress
from compress import Export, OnnxModel, Prune
from compress.prune import By
from compress.target import KINDS, cost_of
from experiments import cli
from experiments.render.markdown import table
from experiments.sweep import CLASSES, Row
from experiments.untrained import build, context, enliven, images, noise, tell
from kd.evaluate import Predict

BATCHES = (1, 32)
COSTS = KINDS[::-1]
RUNTIMES = ("torch", "onnxruntime")


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
        json: a file that the figures are kept in, too; None: none.
    """

    name: str = "resnet50"
    target: float = 0.25
    by: By = "params"
    round_to: tuple[int, ...] = (1, 8, 16)
    image_size: int | None = None
    seconds: float = 120.0
    threads: int = 1
    json: str | None = None


def measure(config: LatencyConfig) -> list[Row]:
    """A row for each way to prune: parameters, MACs and time, also relative to the whole net."""
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
        shape = tuple(x.shape[1:])
        told = compress.latency(models | files, shape, BATCHES, 10, config.threads, config.seconds)
    rows: list[Row] = []
    for name, each in made.items():
        row: Row = {"widths": name, **{by: cost_of(each, shape, by) for by in COSTS}}
        row["milliseconds"] = {
            runtime: {f"batch{batch}": told[f"{runtime} {name}"][f"batch{batch}"]["p50"] for batch in BATCHES}
            for runtime in RUNTIMES
        }
        rows.append(row)
    for row in rows:
        row["kept"] = {by: row[by] / rows[0][by] for by in COSTS}
        row["time"] = {
            runtime: {batch: time / rows[0]["milliseconds"][runtime][batch] for batch, time in times.items()}
            for runtime, times in row["milliseconds"].items()
        }
    return rows


def render(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        times = [time for batches in row["time"].values() for time in batches.values()]
        lines.append(
            [row["widths"], *(f"{share:.3f}" for share in row["kept"].values()), *(f"{time:.2f}" for time in times)]
        )
    timed = [f"{runtime}, batch {batch}" for runtime in RUNTIMES for batch in BATCHES]
    return table(("widths", "params", "MACs", *timed), lines)


def main(config: LatencyConfig, _: str) -> None:
    tell("pruned_latency", config.json, partial(measure, config), render)


if __name__ == "__main__":
    sys.exit(cli.run("pruned_latency", LatencyConfig, main))
