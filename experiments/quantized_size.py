"""How small a net becomes in 8-bit integers, as files that run, and whether they are faster than float.

Example: python -m experiments.quantized_size --name mobilenetv2_100
No weights are needed, since neither size nor time depends on them; so nothing is said of accuracy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import compress
from compress import Export, OnnxModel
from compress.onnx_model import verify
from compress.quantize.integer import integer_convolutions, quantized
from compress.quantize.scheme import Scheme
from experiments import cli
from experiments.render.markdown import table
from experiments.sweep import Row, distance
from experiments.untrained import build, enliven, images, noise, tell

BATCHES = (1, 8)
FORMS: dict[str, tuple[Literal["static", "dynamic"], bool]] = {
    "static, a scale each channel": ("static", True),
    "static, a scale each layer": ("static", False),
    "dynamic": ("dynamic", True),
}


@dataclass(frozen=True)
class SizeConfig:
    """Quantise and weigh.

    Attributes:
        name: a timm, CIFAR or torchvision name.
        classes: how many the net tells apart.
        image_size: pixels a side; None: as published.
        seconds: about how long is measured.
        threads: of the runtime.
        json: a file that the figures are kept in, too; None: none.
    """

    name: str = "mobilenetv2_100"
    classes: int = 1000
    image_size: int | None = None
    seconds: float = 60.0
    threads: int = 1
    json: str | None = None


def measure(config: SizeConfig) -> list[Row]:
    """A row for each form: bytes of the file, integer convolutions, the error, and time, also relative to float."""
    model = build(config.name, config.classes, config.image_size)
    x = images(4, model.blueprint.image_size)
    enliven(model, x)
    with TemporaryDirectory() as folder:
        whole = Export().write(model, noise(x, config.classes), Path(folder) / "float.onnx")
        files: dict[str, OnnxModel] = {"float": whole}
        for place, (form, (mode, per_channel)) in enumerate(FORMS.items()):
            scheme = Scheme(per_channel=per_channel)
            files[form] = quantized(whole, mode, x, Path(folder) / f"{place}.onnx", scheme)
        told = compress.latency(files, whole.image_shape, BATCHES, 10, config.threads, config.seconds)
        rows: list[Row] = []
        for form, file in files.items():
            verify(file.path)
            row: Row = {"file": form, "bytes": file.path.stat().st_size, "error": distance(file(x), whole(x))}
            row["integer"], row["convolutions"] = integer_convolutions(file.path)
            row["milliseconds"] = {f"batch{batch}": told[form][f"batch{batch}"]["p50"] for batch in BATCHES}
            rows.append(row)
    for row in rows:
        row["time"] = {batch: time / rows[0]["milliseconds"][batch] for batch, time in row["milliseconds"].items()}
    return rows


def render(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        cells = [f"{row['bytes'] / 1e6:.3f}", f"{row['bytes'] / 2**20:.3f}"]
        cells += [f"{row['integer']} of {row['convolutions']}", f"{row['error']:.2f}"]
        lines.append([row["file"], *cells, *(f"{time:.2f}" for time in row["time"].values())])
    head = ("file", "MB", "MiB", "integer convolutions", "error", *(f"time, batch {batch}" for batch in BATCHES))
    return table(head, lines)


def main(config: SizeConfig, _: str) -> None:
    tell("quantized_size", config.json, partial(measure, config), render)


if __name__ == "__main__":
    sys.exit(cli.run("quantized_size", SizeConfig, main))
